"""The measured pair: what from_decoder puts together, and what it refuses."""

import math

import pytest
import torch

from sae_lens_crosscoder.diffing import ClassThresholds, PairGeometry
from sae_lens_crosscoder.errors import ConfigError, ShapeError, SourceError
from sae_lens_crosscoder.sources import Source, Sources

LABELS = ("base", "chat")
# base-only, shared at cosine 1, shared at cosine -1, chat-only, no norm
DECODER = torch.tensor(
    [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [1.0, 0.0, -1.0, 0.0], [0.0, 0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]]
)


def test_from_decoder_measures_norms_cosines_and_classes():
    geometry = PairGeometry.from_decoder(DECODER, (2, 2), LABELS)
    assert geometry.relative_norms[:4].tolist() == [0.0, 0.5, 0.5, 1.0]
    assert math.isnan(geometry.relative_norms[4])
    assert list(geometry.classes) == ["base-only", "shared", "shared", "chat-only", "other"]
    assert geometry.counts == {"base-only": 1, "shared": 2, "chat-only": 1, "other": 1, "dead": 0}
    assert geometry.shared_cosines is not None
    assert geometry.shared_cosines.tolist() == pytest.approx([1.0, -1.0])


def test_scales_and_dead_latents_reach_the_classes():
    dead = torch.tensor([False, False, True, False, False])
    geometry = PairGeometry.from_decoder(DECODER, (2, 2), LABELS, scales=[1.0, 19.0], dead=dead)
    assert geometry.relative_norms[1].item() == pytest.approx(0.95)
    assert list(geometry.classes) == ["base-only", "chat-only", "dead", "chat-only", "other"]


def test_sources_of_different_width_have_no_cosines():
    geometry = PairGeometry.from_decoder(DECODER, (1, 3), LABELS)
    assert geometry.cosines is None
    assert geometry.shared_cosines is None


def test_three_sources_are_no_pair():
    with pytest.raises(ShapeError, match="two labels, not 3"):
        PairGeometry(
            labels=("a", "b", "c"),
            relative_norms=torch.tensor([0.5]),
            cosines=None,
            classes=["shared"],
            thresholds=ClassThresholds(),
        )
    with pytest.raises(ShapeError, match="3 sources, and a pair has two"):
        PairGeometry.from_decoder(DECODER, (1, 1, 2), ("a", "b", "c"))


def test_parts_of_different_length_are_refused():
    with pytest.raises(ShapeError, match="2 relative norms, 1 cosines and 2 classes"):
        PairGeometry(LABELS, torch.tensor([0.5, 0.5]), torch.tensor([1.0]), ["shared"] * 2, ClassThresholds())
    with pytest.raises(ShapeError, match="1 relative norms, no cosines and 2 classes"):
        PairGeometry(LABELS, torch.tensor([0.5]), None, ["shared"] * 2, ClassThresholds())


def test_classes_of_other_labels_are_refused():
    with pytest.raises(ConfigError, match="finetuned-only"):
        PairGeometry(LABELS, torch.tensor([1.0]), None, ["finetuned-only"], ClassThresholds())


def test_thresholds_and_dead_latents_reach_the_classes_of_a_pair_of_sources() -> None:
    sources = Sources((Source("a", "a", "hook", 3), Source("b", "b", "hook", 3)))
    W_dec = torch.randn(20, 6)
    assert set(PairGeometry.from_sources(W_dec, sources).classes) > {"shared"}
    thresholds = ClassThresholds(exclusive_above=0.999, shared_low=0.002, shared_high=0.998)
    geometry = PairGeometry.from_sources(W_dec, sources, None, thresholds, torch.arange(20) == 7)
    assert list(geometry.classes) == ["shared"] * 7 + ["dead"] + ["shared"] * 12


def test_a_pair_of_sources_is_measured_in_units_of_their_activations() -> None:
    sources = Sources(
        tuple(
            Source(label, label, "hook", width, activation_scale=scale)
            for label, width, scale in (("a", 3, 2.0), ("b", 4, 1.0), ("c", 3, 0.5))
        )
    )
    W_dec = torch.randn(20, 10)
    expected = PairGeometry.from_decoder(
        torch.cat([W_dec[:, 7:], W_dec[:, :3]], 1), [3, 3], ["c", "a"], scales=[0.5, 2.0]
    )
    geometry = PairGeometry.from_sources(W_dec, sources, ["c", "a"])
    torch.testing.assert_close(geometry.relative_norms, expected.relative_norms)
    assert geometry.classes == expected.classes
    with pytest.raises(SourceError, match="name two, the base first"):
        PairGeometry.from_sources(W_dec, sources)
    with pytest.raises(SourceError, match="There is no source 'd'"):
        PairGeometry.from_sources(W_dec, sources, ["a", "d"])
    difference = Sources((Source("a", "a", "hook", 10), Source("b", "b", "hook", 10)), "difference")
    with pytest.raises(SourceError, match="nothing to compare"):
        PairGeometry.from_sources(W_dec, difference)
