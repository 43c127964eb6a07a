"""Latents read from sae-dashboard's batches, with values that Neuronpedia can keep.

sae-dashboard writes one `batch-{i}.json` a batch of latents. What no database takes is dealt with here:

- an entry of a table or histogram with a NaN is left out, with its neighbours in the arrays beside it: the correlation
  of a latent that never changes is undefined, so none is shown;
- a window in which the latent does not fire is left out: Neuronpedia's page hides it;
- a token that is half a character, empty or NUL gets a sign in its place.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lens_crosscoder.dashboards.neuronpedia.names import SourceName
from sae_lens_crosscoder.dashboards.neuronpedia.schema import NEURON
from sae_lens_crosscoder.errors import DataError, first_line
from sae_lens_crosscoder.files import existing_folder

_OF_BATCH = ("model_id", "layer", "sae_set", "sae_id_suffix", "features")
_OF_TEXT = ("dataset", "n_prompts_total", "n_tokens_in_prompt")
_TABLES = [group for group in NEURON.parallel if group[0] != "topkCosSimIndices"]


@dataclass(frozen=True)
class Window:
    """A stretch of text in which a latent fires."""

    tokens: list[str]
    values: list[float]
    """Activations, one a token."""

    bin_min: float
    """Lower end of the interval of activations that the window stands for; -1 for the windows with the largest."""

    bin_max: float
    """Upper end of the interval."""

    bin_contains: float
    """Share of all activations in the interval; -1 for the windows with the largest."""

    qualifying_token_index: int | None
    """Token that the window was chosen for; None if it is the first of the text, which sae-dashboard leaves out."""


@dataclass(frozen=True)
class Latent:
    """What one latent's dashboard shows for one model."""

    index: int
    frac_nonzero: float
    """Share of tokens on which the latent fires."""

    vector: list[float]
    """The model's slice of the decoder row; empty if the slice is zero, since nothing can be steered with it."""

    tables: dict[str, list[Any]]
    """Logits, histograms, aligned and correlated neurons and latents, by their columns at Neuronpedia."""

    windows: list[Window]
    """Where the latent fires; none for a dead latent."""

    n_silent_windows: int
    """Windows of the batch that are left out, since the latent does not fire there."""

    @property
    def max_activation(self) -> float:
        """The largest activation in the windows; 0 for a dead latent."""
        return max((max(window.values) for window in self.windows), default=0.0)


@dataclass(frozen=True)
class BatchHeader:
    """What sae-dashboard's batches of one source say of the source."""

    name: SourceName
    dataset: str
    n_prompts: int
    n_tokens_in_prompt: int


def read_header(folder: str | Path) -> BatchHeader:
    """What the first batch says of the source.

    Raises:
        NotFoundError: There is no such folder.
        DataError: A folder without batches, or a batch without latents or what they were read on.
        ConfigError: A name that Neuronpedia does not take.
    """
    file = batch_files(folder)[0]
    batch = _read(file)
    feature = batch["features"][0]
    if missing := [key for key in _OF_TEXT if not isinstance(feature, dict) or key not in feature]:
        raise DataError(f"{file} is no batch of sae-dashboard: its first latent lacks {', '.join(missing)}.")
    name = SourceName(batch["model_id"], batch["sae_set"], batch["layer"], batch["sae_id_suffix"])
    return BatchHeader(name, feature["dataset"], feature["n_prompts_total"], feature["n_tokens_in_prompt"])


def batch_files(folder: str | Path) -> list[Path]:
    """sae-dashboard's batches in a folder, in the order of their numbers.

    Raises:
        NotFoundError: There is no such folder.
        DataError: It holds no batch.
    """
    files = existing_folder(folder, "folder of batches").glob("batch-*.json")
    numbered = {int(match[1]): file for file in files if (match := re.fullmatch(r"batch-(\d+)\.json", file.name))}
    if not numbered:
        raise DataError(f"There is no batch-0.json in {folder}: make the dashboards' batches first.")
    return [numbered[number] for number in sorted(numbered)]


def read_latents(folder: str | Path) -> Iterator[Latent]:
    """The latents of all batches, one batch in memory at a time.

    Raises:
        NotFoundError: There is no such folder.
        DataError: A batch that cannot be read, lacks something or is of another source than the first, a latent that
            stands twice, or an activation, a decoder weight or a firing rate that is not finite.
    """
    header = read_header(folder)
    seen: set[int] = set()
    for file in batch_files(folder):
        batch = _read(file)
        own = (batch["model_id"], batch["sae_set"], batch["layer"], batch["sae_id_suffix"])
        name = header.name
        if own != (name.model_id, name.source_set, name.layer, name.suffix):
            raise DataError(
                f"{file} is of the source {own}, the first batch of {name}. Keep each source's batches in a folder of "
                "their own."
            )
        for feature in batch["features"]:
            try:
                latent = _latent(feature)
                if latent.index in seen:
                    raise ValueError("it stands in the batches twice")
            except (KeyError, TypeError, ValueError) as error:
                index = feature.get("feature_index") if isinstance(feature, dict) else None
                why = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
                raise DataError(f"{file}: latent {index} cannot be exported: {why}.") from error
            seen.add(latent.index)
            yield latent


def clean_token(token: str) -> str:
    """The token as text that Neuronpedia's database and API take.

    Half a character, as in a token of single bytes, and an empty token become U+FFFD; NUL becomes its picture, U+2400.
    """
    text = token.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\N{SYMBOL FOR NULL}")
    return text or "\N{REPLACEMENT CHARACTER}"


def _read(file: Path) -> dict[str, Any]:
    try:
        batch = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"The batch {file} cannot be read: {first_line(error)}. Make it again.") from error
    missing = [key for key in _OF_BATCH if key not in batch] if isinstance(batch, dict) else _OF_BATCH
    if missing or not isinstance(batch["features"], list) or not batch["features"]:
        raise DataError(f"{file} is no batch of sae-dashboard: it lacks {', '.join(missing) or 'latents'}.")
    return batch


def _latent(feature: Mapping[str, Any]) -> Latent:
    windows = [_window(activation) for activation in feature["activations"]]
    firing = [window for window in windows if max(window.values, default=0.0) > 0]
    vector = _finite(feature["vector"], "vector")
    return Latent(
        index=feature["feature_index"],
        frac_nonzero=_finite([feature["frac_nonzero"]], "frac_nonzero")[0],
        vector=vector if any(vector) else [],
        tables={name: column for group in _TABLES for name, column in _finite_entries(feature, group).items()},
        windows=firing,
        n_silent_windows=len(windows) - len(firing),
    )


def _window(activation: Mapping[str, Any]) -> Window:
    tokens, values = activation["tokens"], _finite(activation["values"], "activations")
    if len(tokens) != len(values):
        raise ValueError(f"{len(tokens)} tokens beside {len(values)} activations")
    qualifying = activation["qualifying_token_index"]
    return Window(
        tokens=[clean_token(token) for token in tokens],
        values=values,
        bin_min=activation["bin_min"],
        bin_max=activation["bin_max"],
        bin_contains=activation["bin_contains"],
        qualifying_token_index=qualifying if qualifying >= 0 else None,
    )


def _finite(values: Sequence[float], what: str) -> list[float]:
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{what} with NaN or an infinity, which would be shown as if it were measured")
    return list(values)


def _finite_entries(feature: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[Any]]:
    entries = zip(*(feature[name] for name in names), strict=True)
    kept = [entry for entry in entries if all(isinstance(item, str) or math.isfinite(item) for item in entry)]
    columns = {name: [entry[place] for entry in kept] for place, name in enumerate(names)}
    return {
        name: [clean_token(item) if isinstance(item, str) else item for item in column]
        for name, column in columns.items()
    }
