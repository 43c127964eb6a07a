"""The two histograms of Kissane et al. as one interactive figure."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

from sae_lens_crosscoder.diffing.classes import SHARED
from sae_lens_crosscoder.diffing.histograms import PairHistograms, pair_histograms
from sae_lens_crosscoder.diffing.pair_geometry import PairGeometry

if TYPE_CHECKING:
    import plotly.graph_objects as go

_FONT = "Inter, 'Segoe UI', Helvetica, Arial, sans-serif"
_GREY = "#5f6368"
_LINE = "#9aa0a6"
_COLUMN_WIDTHS = (0.56, 0.44)
_COLUMN_GAP = 0.09


def decoder_figure(geometry: PairGeometry, *, log_y: bool = True) -> go.Figure:
    """One figure with two panels: relative decoder norm of all latents, decoder cosine of the shared ones.

    After Kissane et al. (2024). The first panel stacks the classes of all latents over shaded class bands; dead ones
    are in it, in a colour of their own, if they were marked. The subtitle states counts and thresholds. Sources of
    different width have no cosine, and the second panel says so. Labels are shown as they are written: markup in them
    has no effect.

    Args:
        geometry: What to draw.
        log_y: Logarithmic counts in the first panel, where shared latents outnumber exclusive ones by orders of
            magnitude. The second is linear.
    """
    from plotly.subplots import make_subplots

    bars = pair_histograms(geometry)
    figure = make_subplots(
        rows=1,
        cols=2,
        column_widths=list(_COLUMN_WIDTHS),
        horizontal_spacing=_COLUMN_GAP,
        subplot_titles=[_plain(bars.norm_title), _plain(bars.cosine_title)],
    )
    _draw_norms(figure, bars, log_y)
    _draw_cosines(figure, bars)
    subtitle = "<br>".join(_plain(line) for line in bars.subtitle.split("\n"))
    heading = _plain(f"Decoder geometry: {geometry.labels[0]} against {geometry.labels[1]}")
    figure.update_layout(
        template="plotly_white",
        barmode="stack",
        bargap=0,
        height=500,
        margin={"t": 130, "r": 30, "b": 100, "l": 70},
        font={"family": _FONT, "size": 13},
        title={
            "text": f"{heading}<br><span style='font-size:12px;color:{_GREY}'>{subtitle}</span>",
            "x": 0,
            "xref": "paper",
            "y": 0.96,
            "yanchor": "top",
        },
        legend={"orientation": "h", "traceorder": "normal", "x": 0, "y": -0.2, "yanchor": "top"},
        hoverlabel={"font": {"family": _FONT}},
    )
    figure.update_annotations(font_size=14)
    figure.update_xaxes(ticks="outside", tickcolor=_LINE, linecolor=_LINE, showgrid=False, zeroline=False)
    figure.update_yaxes(ticks="outside", tickcolor=_LINE)
    return figure


def _draw_norms(figure: go.Figure, bars: PairHistograms, log_y: bool) -> None:
    for low, high, colour in bars.norm_bands:
        figure.add_shape(
            type="rect",
            x0=low,
            x1=high,
            y0=0,
            y1=1,
            xref="x",
            yref="y domain",
            fillcolor=colour,
            opacity=0.08,
            line_width=0,
            layer="below",
        )
    for name, counts in bars.norm_counts.items():
        figure.add_trace(
            _bar_trace(bars.norm_edges, counts, name=bars.class_captions[name], colour=bars.colours[name]),
            row=1,
            col=1,
        )
    figure.update_xaxes(title_text=_plain(bars.norm_axis), range=[0, 1], dtick=0.1, row=1, col=1)
    figure.update_yaxes(title_text="latents (log scale)" if log_y else "latents", row=1, col=1)
    if log_y:
        tallest = max((sum(column) for column in zip(*bars.norm_counts.values(), strict=True)), default=1)
        # From 0.5, so that a single latent is a visible bar.
        top = math.log10(max(tallest, 1) * 2)
        figure.update_yaxes(type="log", range=[math.log10(0.5), top], dtick=1, row=1, col=1)


def _draw_cosines(figure: go.Figure, bars: PairHistograms) -> None:
    if bars.cosine_counts is None or not any(bars.cosine_counts):
        reason = "no shared latents" if bars.cosine_counts else "no cosine: the sources differ in width"
        # In paper coordinates: without bars the panel has no axes to place a text by.
        middle = 1 - _COLUMN_WIDTHS[1] * (1 - _COLUMN_GAP) / 2
        figure.add_annotation(
            text=reason, x=middle, y=0.5, xref="paper", yref="paper", xanchor="center", showarrow=False
        )
        figure.update_xaxes(visible=False, row=1, col=2)
        figure.update_yaxes(visible=False, row=1, col=2)
        return
    trace = _bar_trace(bars.cosine_edges, bars.cosine_counts, name=SHARED, colour=bars.colours[SHARED])
    trace.showlegend = False
    figure.add_trace(trace, row=1, col=2)
    figure.update_xaxes(title_text=_plain(bars.cosine_axis), range=[-1, 1], dtick=0.5, row=1, col=2)
    figure.update_yaxes(title_text="latents", row=1, col=2)


def _bar_trace(edges: list[float], counts: list[int], *, name: str, colour: str) -> go.Bar:
    import plotly.graph_objects as go

    width = edges[1] - edges[0]
    # Hover text is computed here: a template would read %{...} in a label as a command.
    hover = [f"{low:.2f} to {low + width:.2f}: {n:,}" for low, n in zip(edges[:-1], counts, strict=True)]
    return go.Bar(
        x=[low + width / 2 for low in edges[:-1]],
        y=counts,
        width=width,
        name=_plain(name),
        marker={"color": colour, "line": {"color": "white", "width": 0.5}},
        hovertext=hover,
        hoverinfo="text",
    )


def _plain(text: str) -> str:
    """Text that plotly shows as it stands; unescaped, it would take `<b>` and `<a href>` in a label for markup."""
    return html.escape(text, quote=False)
