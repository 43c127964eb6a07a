"""The two histograms as a PNG, drawn by matplotlib: plotly's own export needs a browser on the machine."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from sae_lens_crosscoder.diffing.classes import SHARED
from sae_lens_crosscoder.diffing.histograms import PairHistograms, pair_histograms
from sae_lens_crosscoder.diffing.pair_geometry import PairGeometry
from sae_lens_crosscoder.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

_GREY = "#5f6368"


def save_png(geometry: PairGeometry, path: str | Path, *, log_y: bool = True, dpi: int = 150) -> Path:
    """Write the two panels of `decoder_figure` as a PNG, 12 by 5 inches, and return its path.

    Needs no display and leaves matplotlib's global state alone, so it can run in a training process or a thread.

    Raises:
        SaveError: The file cannot be written; what was there before is untouched.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = pair_histograms(geometry)
    figure = Figure(figsize=(12, 5), dpi=dpi)
    canvas = FigureCanvasAgg(figure)
    norm_axes, cosine_axes = figure.subplots(1, 2, width_ratios=[1.25, 1])
    _draw_norms(norm_axes, bars, log_y)
    _draw_cosines(cosine_axes, bars)
    for axes in (norm_axes, cosine_axes):
        axes.spines[["top", "right"]].set_visible(False)
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.2, top=0.77, wspace=0.18)
    heading = f"Decoder geometry: {geometry.labels[0]} against {geometry.labels[1]}"
    figure.text(0.07, 0.95, heading, fontsize=14, weight="bold", va="center", parse_math=False)
    figure.text(0.07, 0.925, bars.subtitle, fontsize=9.5, color=_GREY, va="top", linespacing=1.5, parse_math=False)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return write_file(path, buffer.getvalue())


def _draw_norms(axes: Axes, bars: PairHistograms, log_y: bool) -> None:
    for low, high, colour in bars.norm_bands:
        axes.axvspan(low, high, color=colour, alpha=0.08, linewidth=0)
    lefts, width = bars.norm_edges[:-1], bars.norm_edges[1] - bars.norm_edges[0]
    heights = [0] * len(lefts)
    for name, counts in bars.norm_counts.items():
        axes.bar(
            lefts,
            counts,
            width,
            bottom=heights,
            align="edge",
            color=bars.colours[name],
            edgecolor="white",
            linewidth=0.4,
        )
        heights = [low + count for low, count in zip(heights, counts, strict=True)]
    axes.set_xlim(0, 1)
    axes.set_xticks([tick / 10 for tick in range(11)])
    _set_titles(axes, bars.norm_title, bars.norm_axis, "latents (log scale)" if log_y else "latents")
    if log_y:
        # From 0.5, so that a single latent is a visible bar.
        axes.set_ylim(0.5, 2 * max([1, *heights]))
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "")
    _draw_legend(axes, bars)


def _draw_cosines(axes: Axes, bars: PairHistograms) -> None:
    if bars.cosine_counts is None or not any(bars.cosine_counts):
        reason = "no shared latents" if bars.cosine_counts else "no cosine: the sources differ in width"
        axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", color=_GREY)
        axes.set_axis_off()
        axes.set_title(bars.cosine_title, fontsize=11, loc="left", parse_math=False)
        return
    width = bars.cosine_edges[1] - bars.cosine_edges[0]
    axes.bar(
        bars.cosine_edges[:-1],
        bars.cosine_counts,
        width,
        align="edge",
        color=bars.colours[SHARED],
        edgecolor="white",
        linewidth=0.4,
    )
    axes.set_xlim(-1, 1)
    axes.set_xticks([-1, -0.5, 0, 0.5, 1])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _set_titles(axes, bars.cosine_title, bars.cosine_axis, "latents")


def _set_titles(axes: Axes, title: str, x_title: str, y_title: str) -> None:
    axes.set_title(title, fontsize=11, loc="left", parse_math=False)
    axes.set_xlabel(x_title, parse_math=False)
    axes.set_ylabel(y_title)


def _draw_legend(axes: Axes, bars: PairHistograms) -> None:
    names = list(bars.class_captions.values())
    # Named afterwards: matplotlib drops entries that begin with "_" and reads $...$ as a formula.
    legend = axes.legend(
        axes.containers,
        ["latents"] * len(names),
        loc="upper left",
        bbox_to_anchor=(-0.02, -0.15),
        ncols=len(names),
        frameon=False,
        fontsize=9,
        handlelength=1,
        columnspacing=1.2,
    )
    for entry, name in zip(legend.get_texts(), names, strict=True):
        _set_plain(entry, name)


def _set_plain(entry: Text, text: str) -> None:
    entry.set_parse_math(False)
    entry.set_text(text)
