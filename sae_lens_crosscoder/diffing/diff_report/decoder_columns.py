"""Columns of what the decoder alone says of latents."""

from __future__ import annotations

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.diffing.diff_report.column import Column
from sae_lens_crosscoder.diffing.geometry import decoder_norms
from sae_lens_crosscoder.diffing.pair_geometry import PairGeometry
from sae_lens_crosscoder.sources import Sources

GROUP = "Decoder"
"""Heading under which these columns stand."""


def pair_columns(geometry: PairGeometry) -> Iterator[Column]:
    """Class, relative norm, and cosine for sources of equal width."""
    first, second = geometry.labels
    yield Column("class", geometry.classes, "class", geometry.thresholds.describe(), GROUP)
    meaning = f"Share of {second} in the summed decoder norm: 0 is only in {first}, 1 only in {second}."
    yield Column("relative_norm", geometry.relative_norms, "relative norm", meaning, GROUP)
    if geometry.cosines is not None:
        meaning = "Cosine of the two models' decoder rows: 1 is the same direction."
        yield Column("cosine", geometry.cosines, "cosine", meaning, GROUP)


def norm_columns(W_dec: Float[Tensor, "d_sae d_in"], sources: Sources) -> Iterator[Column]:
    """The norm of every source's decoder rows."""
    norms = decoder_norms(W_dec, sources.widths, sources.activation_scales)
    for i, (label, column) in enumerate(zip(sources.labels, norms.T, strict=True)):
        meaning = f"Decoder norm in {label}, times the activation scale of training if there was one."
        yield Column(f"source_{i}_norm_{file_name(label)}", column, f"norm, {label}", meaning, GROUP, shown=False)


def file_name(name: str) -> str:
    """A name as it may stand in a column's: letters and digits of ASCII, `_`, `.`, `-`."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_" for c in name)
