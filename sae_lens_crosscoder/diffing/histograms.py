"""The two histograms of Kissane et al. as numbers, so that the HTML and the PNG draw the same bars."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_lens_crosscoder.diffing.classes import DEAD, OTHER, SHARED
from sae_lens_crosscoder.diffing.pair_geometry import PairGeometry

N_BINS = 50
"""Bins of either histogram: 0.02 of relative norm each, so that 0.1, 0.3, 0.7 and 0.9 fall between bins."""

_FIRST, _SECOND = "#2f6fb7", "#d1495b"
_COLOURS = {SHARED: "#5b8c5a", OTHER: "#b9b4a7", DEAD: "#4a4a4a"}


@dataclass(frozen=True)
class PairHistograms:
    """Bar heights and texts of the two panels."""

    norm_edges: list[float]
    """Bin edges of the relative decoder norm, from 0 to 1."""

    norm_counts: dict[str, list[int]]
    """Latents per bin for every class that has any, in report order; the bars are stacked."""

    class_captions: dict[str, str]
    """Class and number of its latents, for every class in `norm_counts`."""

    cosine_edges: list[float]
    """Bin edges of the decoder cosine, from -1 to 1."""

    cosine_counts: list[int] | None
    """Shared latents per bin; None if the sources differ in width."""

    norm_bands: list[tuple[float, float, str]]
    """From, to and colour of the classes on the norm axis: first source only, shared, second source only."""

    colours: dict[str, str]
    """Colour of every class in `norm_counts`, as #rrggbb."""

    norm_title: str
    norm_axis: str
    cosine_title: str
    cosine_axis: str
    subtitle: str
    """Counts and thresholds in one line each."""


def pair_histograms(geometry: PairGeometry) -> PairHistograms:
    """Count the latents of a pair into the bars of the two panels.

    Latents without a relative norm (NaN, an all-zero decoder) are in no bar; the subtitle says how many.
    """
    first, second = geometry.labels
    thresholds = geometry.thresholds
    names = list(geometry.class_names)
    code = torch.tensor([names.index(name) for name in geometry.classes], dtype=torch.long)
    norms = geometry.relative_norms.detach().to("cpu", torch.float64)
    norm_counts = {
        name: _count(norms[code == index], 0.0, 1.0) for index, name in enumerate(names) if geometry.counts[name] > 0
    }
    shared = geometry.shared_cosines
    cosine_counts = None if shared is None else _count(shared.detach().to("cpu", torch.float64), -1.0, 1.0)
    n_shared = geometry.counts[SHARED]
    colours = dict(zip(names, [_FIRST, _COLOURS[SHARED], _SECOND, _COLOURS[OTHER], _COLOURS[DEAD]], strict=True))
    return PairHistograms(
        norm_edges=_edges(0.0, 1.0),
        norm_counts=norm_counts,
        class_captions={name: f"{name} ({geometry.counts[name]:,})" for name in norm_counts},
        cosine_edges=_edges(-1.0, 1.0),
        cosine_counts=cosine_counts,
        norm_bands=[
            (0.0, 1 - thresholds.exclusive_above, _FIRST),
            (thresholds.shared_low, thresholds.shared_high, _COLOURS[SHARED]),
            (thresholds.exclusive_above, 1.0, _SECOND),
        ],
        colours={name: colours[name] for name in norm_counts},
        norm_title=f"Relative decoder norm of all {len(norms):,} latents",
        norm_axis=f"‖d[{second}]‖ / (‖d[{first}]‖ + ‖d[{second}]‖)",
        cosine_title=f"Decoder cosine of the {n_shared:,} shared latents",
        cosine_axis=f"cos(d[{first}], d[{second}])",
        subtitle=_subtitle(geometry, n_without_norm=int(torch.isnan(norms).sum())),
    )


def _subtitle(geometry: PairGeometry, n_without_norm: int) -> str:
    counts = " · ".join(f"{name} {count:,}" for name, count in geometry.counts.items())
    if n_without_norm:
        counts += f" · not drawn: {n_without_norm:,} without any decoder norm"
    return f"{counts}\n{geometry.thresholds.describe()}"


def _edges(low: float, high: float) -> list[float]:
    return [low + (high - low) * index / N_BINS for index in range(N_BINS + 1)]


def _count(values: Tensor, low: float, high: float) -> list[int]:
    """Values per bin, the upper end belonging to the last bin; NaN is in none."""
    known = values[~torch.isnan(values)]
    # torch.histc leaves out values outside the range, and rounding puts a cosine of 1 there.
    index = ((known - low) / (high - low) * N_BINS).floor().long().clamp(0, N_BINS - 1)
    return torch.bincount(index, minlength=N_BINS).tolist()
