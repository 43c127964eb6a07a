"""The two axes of stage-wise diffing as a figure: plotly's for the report, matplotlib's as a PNG."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sae_lens_crosscoder.diffing.rotation import (
    MAX_CHANGE_D,
    MAX_CHANGE_DM,
    MAX_CHANGE_M,
    MIN_CHANGE_DM,
    QUADRANTS,
    StageRotations,
)
from sae_lens_crosscoder.files import write_file

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLOURS = {MIN_CHANGE_DM: "#9aa0a6", MAX_CHANGE_D: "#1a73e8", MAX_CHANGE_M: "#f29900", MAX_CHANGE_DM: "#d93025"}
_RING_COLOURS = ("#202124", "#9334e6", "#1e8e3e")
_TITLES = (
    "model change: decoder cosine D → DF (fine-tuning data)",
    "data change: decoder cosine M → MF (fine-tuned model)",
)
_HEADING = "Rotation of latents with the model and with the data"


def rotation_figure(rotations: StageRotations, marked: Mapping[str, Sequence[int]] | None = None) -> go.Figure:
    """Every latent by its two cosines, coloured by quadrant, with the thresholds as lines.

    Latents that turned with both are at the lower left. Hovering shows the latent's number. Latents without a cosine
    are left out.

    Args:
        rotations: What to draw.
        marked: Latents to put rings around, under a name for each group.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for name in QUADRANTS:
        latents = [j for j, quadrant in enumerate(rotations.quadrants) if quadrant == name]
        figure.add_trace(_points(rotations, latents, f"{name} ({len(latents):,})", {"size": 7, "color": COLOURS[name]}))
    for i, (name, latents) in enumerate((marked or {}).items()):
        colour = _RING_COLOURS[i % len(_RING_COLOURS)]
        ring = {"size": 13 + 4 * i, "symbol": "circle-open", "color": colour, "line": {"width": 1.6}}
        figure.add_trace(_points(rotations, latents, f"{name} ({len(latents):,})", ring))
    x, y = rotations.thresholds
    figure.add_vline(x=x, line={"color": "#5f6368", "dash": "dash", "width": 1})
    figure.add_hline(y=y, line={"color": "#5f6368", "dash": "dash", "width": 1})
    figure.update_layout(
        template="plotly_white",
        height=620,
        title={"text": f"{_HEADING}<br><span style='font-size:12px;color:#5f6368'>{_subtitle(rotations)}</span>"},
        xaxis={"title": {"text": _TITLES[0]}, "ticks": "outside"},
        yaxis={"title": {"text": _TITLES[1]}, "ticks": "outside"},
        font={"family": "Inter, 'Segoe UI', Helvetica, Arial, sans-serif", "size": 13},
        legend={"orientation": "h", "x": 0, "y": -0.14, "yanchor": "top"},
        margin={"t": 90, "r": 30, "b": 110, "l": 80},
    )
    return figure


def save_rotation_png(
    rotations: StageRotations, path: str | Path, marked: Mapping[str, Sequence[int]] | None = None, dpi: int = 150
) -> Path:
    """Write `rotation_figure` as a PNG, 8 by 7 inches, without a display; return its path.

    Raises:
        SaveError: The file cannot be written; what was there before is untouched.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), dpi=dpi, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name in QUADRANTS:
        latents = [j for j, quadrant in enumerate(rotations.quadrants) if quadrant == name]
        points = axes.scatter(*_coordinates(rotations, latents), s=16, color=COLOURS[name])
        points.set_label(f"{name} ({len(latents):,})")
    for i, (name, latents) in enumerate((marked or {}).items()):
        colour = _RING_COLOURS[i % len(_RING_COLOURS)]
        place = _coordinates(rotations, latents)
        rings = axes.scatter(*place, s=80 + 60 * i, facecolors="none", edgecolors=colour)
        rings.set_label(f"{name} ({len(latents):,})")
    x, y = rotations.thresholds
    axes.axvline(x, color="#5f6368", linestyle="--", linewidth=0.8)
    axes.axhline(y, color="#5f6368", linestyle="--", linewidth=0.8)
    axes.set_title(f"{_HEADING}\n{_subtitle(rotations)}", fontsize=11, loc="left", parse_math=False)
    axes.set_xlabel(_TITLES[0])
    axes.set_ylabel(_TITLES[1])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", frameon=False, fontsize=9)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return write_file(path, buffer.getvalue())


def _subtitle(rotations: StageRotations) -> str:
    x, y = rotations.thresholds
    percent = f"{rotations.percentile:g}"
    return f"{len(rotations.quadrants):,} latents; lines at percentile {percent} of each axis, {x:.3f} and {y:.3f}"


def _coordinates(rotations: StageRotations, latents: Sequence[int]) -> tuple[list[float], list[float]]:
    chosen = list(latents)
    return rotations.model_change[chosen].tolist(), rotations.data_change[chosen].tolist()


def _points(rotations: StageRotations, latents: Sequence[int], name: str, marker: Mapping[str, object]) -> go.Scatter:
    import plotly.graph_objects as go

    xs, ys = _coordinates(rotations, latents)
    hover = [f"latent {j}: {x:.3f} D→DF, {y:.3f} M→MF" for j, x, y in zip(latents, xs, ys, strict=True)]
    label = html.escape(name, quote=False)
    return go.Scatter(
        x=xs,
        y=ys,
        mode="markers",
        name=label,
        marker=marker,
        hovertext=hover,
        hoverinfo="text",
    )
