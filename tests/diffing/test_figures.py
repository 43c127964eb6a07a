"""The interactive figure: what is in its panels, and that labels cannot act in it."""

from collections.abc import Callable

import pytest
import torch

from sae_lens_crosscoder.diffing import ClassThresholds, PairGeometry, decoder_figure

MakeGeometry = Callable[..., PairGeometry]


def test_two_panels_with_every_latent_and_every_shared_latent(geometry: PairGeometry):
    figure = decoder_figure(geometry)
    norm_bars = [trace for trace in figure.data if trace.xaxis == "x"]
    cosine_bars = [trace for trace in figure.data if trace.xaxis == "x2"]
    assert sum(sum(trace.y) for trace in norm_bars) == len(geometry.classes) - 1
    assert sum(sum(trace.y) for trace in cosine_bars) == geometry.counts["shared"]
    assert [trace.name.split(" ")[0] for trace in norm_bars] == list(geometry.class_names)


@pytest.mark.parametrize(
    ("log_y", "axis_type", "title"), [(True, "log", "latents (log scale)"), (False, None, "latents")]
)
def test_the_norm_axis_is_logarithmic_on_request(
    geometry: PairGeometry, log_y: bool, axis_type: str | None, title: str
):
    layout = decoder_figure(geometry, log_y=log_y).layout
    assert layout.yaxis.type == axis_type
    assert layout.yaxis.title.text == title
    assert layout.yaxis2.type is None
    assert layout.xaxis.title.text == "‖d[finetuned]‖ / (‖d[base]‖ + ‖d[finetuned]‖)"


def test_the_title_states_counts_and_thresholds(geometry: PairGeometry):
    title = decoder_figure(geometry).layout.title.text
    assert "Decoder geometry: base against finetuned" in title
    assert f"shared {geometry.counts['shared']}" in title
    assert "share of the decoder norm &gt; 0.9" in title


def test_markup_in_labels_stays_text(make_geometry: MakeGeometry):
    figure = decoder_figure(make_geometry(("<a href='https://x.y'>l</a>", "%{x}<b>&")))
    texts = [figure.layout.title.text, figure.layout.xaxis.title.text, figure.layout.xaxis2.title.text]
    texts += [trace.name for trace in figure.data]
    assert not any("<a" in text or "<b>" in text for text in texts)
    assert "&lt;a href=" in texts[0]
    assert all(trace.hovertemplate is None for trace in figure.data)


def test_a_panel_without_bars_says_why(make_geometry: MakeGeometry):
    notes = [note.text for note in decoder_figure(make_geometry(widths=(16, 8))).layout.annotations]
    assert "no cosine: the sources differ in width" in notes
    exclusive = PairGeometry(("a", "b"), torch.tensor([1.0]), torch.tensor([0.0]), ["b-only"], ClassThresholds())
    assert "no shared latents" in [note.text for note in decoder_figure(exclusive).layout.annotations]


def test_a_pair_without_any_drawable_latent_still_draws():
    empty = PairGeometry(("a", "b"), torch.tensor([float("nan")]), None, ["other"], ClassThresholds())
    assert sum(decoder_figure(empty).data[0].y) == 0
