"""The model card of a repository: Hub metadata, and one section a crosscoder, replaced when it is published anew.

Sections stand between two comments, `<!-- crosscoder: ID -->` and `<!-- end of crosscoder: ID -->`. What stands outside
of them, by hand or from elsewhere, stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

import yaml
from huggingface_hub import ModelCard, ModelCardData

# Where both TransformerLens 2 and 3 have it.
from transformer_lens.loading_from_pretrained import get_official_model_name

from sae_lens_crosscoder.errors import DataError
from sae_lens_crosscoder.hub.bundle import Bundle
from sae_lens_crosscoder.hub.card_section import Place, crosscoder_section
from sae_lens_crosscoder.hub.markdown import plain
from sae_lens_crosscoder.hub.names import is_hub_id
from sae_lens_crosscoder.hub.redaction import LOCAL, datasets_of

CARD = "README.md"
LIBRARY = "saelens"
_BEGIN = "<!-- crosscoder: "
_TAGS = ("saelens", "sparse-autoencoder", "crosscoder", "model-diffing")
_INTRODUCTION = """Crosscoders: each is one sparse dictionary over the activations of several models (or of one model \
at several places), trained to show what differs between them. They are \
[SAELens](https://github.com/decoderesearch/SAELens) SAEs, written by `sae-lens-crosscoder`."""


def card_with(card: str | None, bundle: Bundle, place: Place, license: str | None = None) -> str:
    """The card of a repository with the section of one crosscoder added, or put in the place of its old one.

    Args:
        card: The card as it is; None if the repository has none.
        bundle: The crosscoder.
        place: Where it is published.
        license: The licence of what is published, as the Hub names it ("mit"); None leaves what the card says.

    Raises:
        DataError: The card that is there cannot be read.
    """
    data, text = _read(card) if card is not None else (ModelCardData(), "")
    if not text.strip():
        text = f"# {plain(place.repo_id.rpartition('/')[2])}\n\n{_INTRODUCTION}\n"
    _add_metadata(data, bundle, license)
    content = (
        f"---\n{data.to_yaml()}\n---\n\n{_with_section(text, place.id, crosscoder_section(bundle, place)).lstrip()}"
    )
    return str(ModelCard(content))


def base_models(model_names: Iterable[str]) -> list[str]:
    """The models as the Hub names them, for `base_model`; those that are on no Hub are left out."""
    found = (name if is_hub_id(name) else _official(name) for name in model_names if not name.startswith(LOCAL))
    return list(dict.fromkeys(name for name in found if name is not None and is_hub_id(name)))


def _official(name: str) -> str | None:
    """TransformerLens's names ("gemma-2-2b") stand for models of the Hub ("google/gemma-2-2b")."""
    try:
        return get_official_model_name(name)
    except ValueError:
        return None


def _read(card: str) -> tuple[ModelCardData, str]:
    try:
        read = ModelCard(card)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"The {CARD} of the repository has metadata that cannot be read ({type(error).__name__}). Mend the lines "
            "between the two '---' at its beginning, then publish again."
        ) from error
    return cast("ModelCardData", read.data), read.text


def _add_metadata(data: ModelCardData, bundle: Bundle, license: str | None) -> None:
    paths = [str(entry.get("path") or "") for entry in datasets_of(bundle.runner_cfg)]
    added = {
        "base_model": base_models(source.model_name for source in bundle.sources),
        "datasets": [path for path in dict.fromkeys(paths) if is_hub_id(path)],
        "tags": list(_TAGS),
    }
    for name, values in added.items():
        if together := list(dict.fromkeys([*_listed(getattr(data, name, None)), *values])):
            setattr(data, name, together)
    data.library_name = data.library_name or LIBRARY
    if license is not None:
        data.license = license


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _with_section(text: str, id: str, section: str) -> str:
    begin, end = f"{_BEGIN}{id} -->", f"<!-- end of crosscoder: {id} -->"
    marked = f"{begin}\n{section}\n{end}"
    # A section whose end was lost does not reach to that of a later one, over what stands between them.
    pattern = re.compile(f"{re.escape(begin)}(?:(?!{re.escape(_BEGIN)}).)*?{re.escape(end)}", re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda _: marked, text, count=1)
    return f"{text.rstrip()}\n\n{marked}\n"
