"""The bars that both drawings share."""

import pytest
import torch

from sae_lens_crosscoder.diffing import ClassThresholds, PairGeometry, classify_latents
from sae_lens_crosscoder.diffing.histograms import N_BINS, pair_histograms

LABELS = ("base", "finetuned")


def pair(relative: list[float], cosines: list[float] | None, dead: list[bool] | None = None) -> PairGeometry:
    norms = torch.tensor(relative)
    mask = None if dead is None else torch.tensor(dead)
    return PairGeometry(
        LABELS,
        norms,
        None if cosines is None else torch.tensor(cosines),
        classify_latents(norms, ClassThresholds(), LABELS, mask),
        ClassThresholds(),
    )


def non_zero(counts: list[int]) -> dict[int, int]:
    return {index: count for index, count in enumerate(counts) if count}


def test_every_latent_is_in_the_bar_of_its_norm_and_class():
    bars = pair_histograms(pair([0.0, 0.01, 0.5, 0.51, 0.53, 1.0], None, [False, False, False, True, False, False]))
    assert {name: non_zero(counts) for name, counts in bars.norm_counts.items()} == {
        "base-only": {0: 2},
        "shared": {25: 1, 26: 1},
        "finetuned-only": {49: 1},
        "dead": {25: 1},
    }
    assert bars.class_captions["base-only"] == "base-only (2)"


def test_edges_cover_the_whole_axis_in_equal_steps():
    bars = pair_histograms(pair([0.5], [1.0]))
    assert bars.norm_edges[0] == 0.0
    assert bars.norm_edges[-1] == 1.0
    assert bars.norm_edges[5] == pytest.approx(0.1)
    assert bars.cosine_edges[0] == -1.0
    assert bars.cosine_edges[-1] == 1.0
    assert len(bars.norm_edges) == len(bars.cosine_edges) == N_BINS + 1


def test_only_shared_latents_are_among_the_cosines():
    bars = pair_histograms(pair([0.5, 0.5, 0.5, 0.0, 1.0], [-1.0, 0.01, 1.0, 0.5, 0.5]))
    assert bars.cosine_counts is not None
    assert non_zero(bars.cosine_counts) == {0: 1, 25: 1, 49: 1}
    assert bars.cosine_title == "Decoder cosine of the 3 shared latents"


def test_latents_without_a_norm_are_counted_but_not_drawn():
    bars = pair_histograms(pair([0.5, float("nan")], None))
    assert sum(map(sum, bars.norm_counts.values())) == 1
    assert "not drawn: 1 without any decoder norm" in bars.subtitle
    assert "other 1" in bars.subtitle


def test_the_subtitle_states_counts_and_thresholds():
    counts, thresholds = pair_histograms(pair([0.0, 0.5, 1.0], None)).subtitle.split("\n")
    assert counts == "base-only 1 · shared 1 · finetuned-only 1 · other 0 · dead 0"
    assert thresholds == ClassThresholds().describe()


def test_the_bands_stand_where_the_thresholds_are():
    bands = [(low, high) for low, high, _ in pair_histograms(pair([0.5], None)).norm_bands]
    assert bands == [(0.0, pytest.approx(0.1)), (0.3, 0.7), (0.9, 1.0)]


def test_sources_of_different_width_have_no_cosine_bars():
    assert pair_histograms(pair([0.5], None)).cosine_counts is None
