"""How Neuronpedia names things: models, source sets, and the sources in them.

A Neuronpedia *source* is one dictionary read at one place of one model, so a crosscoder gives one source for each of
its models. Addresses are `neuronpedia.org/{model id}/{source id}/{index}`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sae_lens_crosscoder.errors import ConfigError

SEEDED_CREATOR_ID = "clkht01d40000jv08hvalcvly"
"""The user that every new Neuronpedia database holds; rows by another user need that user to be there."""

_MODEL_ID = re.compile(r"[a-z]|[a-z][a-z0-9._-]*[a-z0-9]")
_SET_NAME = re.compile(r"[a-z0-9]|[a-z][a-z0-9-]*[a-z0-9]")
_SUFFIX = re.compile(r"[a-z0-9]|[a-z0-9][a-z0-9._-]*[a-z0-9]")
_SOURCE_ID = re.compile(r"(?P<layer>0|[1-9]\d*)-(?P<set>.+?)(?:__(?P<suffix>.+))?")
_MAX_MODEL_ID = 128


def model_id_fault(name: str) -> str | None:
    """What is wrong with a model's id; None if Neuronpedia takes it."""
    if not _MODEL_ID.fullmatch(name) or "--" in name or ".." in name or len(name) > _MAX_MODEL_ID:
        return (
            f"{name!r} is no model id: lower-case letters, digits, '-', '.' and '_', beginning with a letter, ending "
            f"with a letter or digit, no '--' or '..', at most {_MAX_MODEL_ID} characters"
        )
    return None


def set_name_fault(name: str) -> str | None:
    """What is wrong with a source set's name; None if Neuronpedia takes it."""
    if not _SET_NAME.fullmatch(name) or "--" in name or name == "neurons":
        return (
            f"{name!r} is no name of a source set: lower-case letters, digits and '-', beginning with a letter, ending "
            "with a letter or digit, no '--', not 'neurons'"
        )
    return None


def source_id_fault(name: str) -> str | None:
    """What is wrong with a source's id, `{layer}-{set}` or `{layer}-{set}__{suffix}`; None if Neuronpedia takes it."""
    match = _SOURCE_ID.fullmatch(name)
    if match is None:
        return f"{name!r} is no source id: {{layer}}-{{source set}}, and __{{suffix}} if a layer has several"
    if match["suffix"] is not None and not _SUFFIX.fullmatch(match["suffix"]):
        return f"{name!r} is no source id: the suffix is of lower-case letters, digits, '-', '.' and '_'"
    fault = set_name_fault(match["set"])
    return None if fault is None else f"{name!r} is no source id: {fault}"


def upload_id_fault(name: str) -> str | None:
    """What is wrong with the id of a source that features are uploaded to; None if the API can find one.

    The source sets that users make there have one source a layer and no suffixes.
    """
    fault = source_id_fault(name)
    if fault is None and "__" in name:
        return f"{name!r} has a suffix, and source sets that users make on Neuronpedia have none"
    return fault


@dataclass(frozen=True)
class SourceName:
    """Where the latents of one model stand on Neuronpedia.

    Raises:
        ConfigError: A name that Neuronpedia does not take.
    """

    model_id: str
    """Neuronpedia's id of the model, such as "gemma-2-2b"."""

    source_set: str
    """Source set, such as "crosscoder-res-16k"."""

    layer: int
    """Layer that the source is read at."""

    suffix: str | None = None
    """What tells two sources of one set, model and layer apart."""

    def __post_init__(self) -> None:
        fault = model_id_fault(self.model_id) or set_name_fault(self.source_set) or source_id_fault(self.source_id)
        if fault is not None:
            raise ConfigError(f"Neuronpedia would refuse this source: {fault}.")

    @property
    def source_id(self) -> str:
        """`{layer}-{source set}`, and `__{suffix}` if there is one."""
        return f"{self.layer}-{self.source_set}" + (f"__{self.suffix}" if self.suffix else "")
