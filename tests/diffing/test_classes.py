"""Classes by relative decoder norm."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_crosscoder.diffing import (
    ClassThresholds,
    class_counts,
    class_names,
    classify_latents,
    decoder_norm_shares,
    minder_delta,
    relative_decoder_norms,
)
from sae_lens_crosscoder.errors import ConfigError, ShapeError

LABELS = ("base", "finetuned")

shares_of_two = st.lists(st.floats(0, 1, width=32) | st.just(math.nan), min_size=1, max_size=30).map(torch.tensor)


def test_every_class_by_hand():
    relative = torch.tensor([0.0, 0.05, 0.2, 0.31, 0.5, 0.69, 0.8, 0.95, 1.0, math.nan])
    assert classify_latents(relative, ClassThresholds(), LABELS) == [
        "base-only",
        "base-only",
        "other",
        "shared",
        "shared",
        "shared",
        "other",
        "finetuned-only",
        "finetuned-only",
        "other",
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_latent_on_a_threshold_is_in_neither_class(dtype: torch.dtype):
    relative = torch.tensor([0.3, 0.7, 0.9], dtype=dtype)
    shares = torch.stack([1 - relative, relative], dim=1)
    shares[:, 0] = torch.tensor([0.7, 0.3, 0.1], dtype=dtype)
    assert classify_latents(shares, ClassThresholds(), LABELS) == ["other"] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_latent_on_one_edge_of_the_shared_band_of_three_sources_is_not_shared(dtype: torch.dtype):
    # For two sources one edge is the mirror image of the other; for three each is reached alone.
    thresholds = ClassThresholds(exclusive_above=0.75, shared_low=0.1875, shared_high=0.5)
    shares = torch.tensor([[0.1875, 0.40625, 0.40625], [0.5, 0.25, 0.25], [0.375, 0.3125, 0.3125]], dtype=dtype)
    assert classify_latents(shares, thresholds, ("a", "b", "c")) == ["other", "other", "shared"]


def test_dead_latents_are_dead_whatever_their_norms():
    relative = torch.tensor([0.0, 0.5, 1.0, math.nan])
    dead = torch.tensor([True, False, True, True])
    assert classify_latents(relative, ClassThresholds(), LABELS, dead) == ["dead", "shared", "dead", "dead"]


def test_three_sources_by_hand():
    shares = torch.tensor(
        [[0.95, 0.03, 0.02], [0.02, 0.95, 0.03], [0.0, 0.0, 1.0], [0.33, 0.33, 0.34], [0.5, 0.5, 0.0], [0.3, 0.3, 0.4]]
    )
    assert classify_latents(shares, ClassThresholds.for_n_sources(3), ("a", "b", "c")) == [
        "a-only",
        "b-only",
        "c-only",
        "shared",
        "other",
        "shared",
    ]


def test_class_names_put_the_shared_between_the_exclusive():
    assert class_names(LABELS) == ("base-only", "shared", "finetuned-only", "other", "dead")
    assert class_names(("a", "b", "c")) == ("a-only", "shared", "b-only", "c-only", "other", "dead")


def test_thresholds_for_more_sources_keep_the_norm_ratios():
    assert ClassThresholds.for_n_sources(2) == ClassThresholds()
    four = ClassThresholds.for_n_sources(4)
    # 9 : 1 : 1 : 1, then 3 : 7 : 7 : 7 and 7 : 3 : 3 : 3.
    assert four.exclusive_above == pytest.approx(9 / 12)
    assert four.shared_low == pytest.approx(3 / 24, abs=1e-4)
    assert four.shared_high == pytest.approx(7 / 16, abs=1e-4)


def test_thresholds_for_more_sources_are_the_four_decimals_that_a_report_can_show():
    # 9 / 11 = 0.818181..., 3 / 17 = 0.176470..., 7 / 13 = 0.538461...
    assert ClassThresholds.for_n_sources(3) == ClassThresholds(0.8182, 0.1765, 0.5385)


def test_the_exclusive_class_may_begin_where_the_shared_band_ends():
    thresholds = ClassThresholds(exclusive_above=0.7)
    assert classify_latents(torch.tensor([0.65, 0.75]), thresholds, LABELS) == ["shared", "finetuned-only"]


@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)), min_size=1, max_size=20))
def test_minder_thresholds_are_those_of_delta(pairs: list[tuple[float, float]]):
    norms = torch.tensor(pairs, dtype=torch.float64)
    delta = minder_delta(norms)
    classes = classify_latents(relative_decoder_norms(norms), ClassThresholds.minder(), LABELS)
    for value, name in zip(delta.tolist(), classes, strict=True):
        if any(abs(value - edge) < 1e-9 for edge in (0.1, 0.4, 0.6, 0.9)):
            continue
        if value < 0.1:
            expected = "finetuned-only"
        elif value > 0.9:
            expected = "base-only"
        else:
            expected = "shared" if 0.4 < value < 0.6 else "other"
        assert name == expected


@given(shares_of_two)
def test_counts_add_up_to_the_number_of_latents(relative: torch.Tensor):
    counts = class_counts(classify_latents(relative, ClassThresholds(), LABELS), LABELS)
    assert sum(counts.values()) == len(relative)
    assert tuple(counts) == class_names(LABELS)


@given(shares_of_two)
def test_swapping_the_sources_swaps_the_classes(relative: torch.Tensor):
    shares = torch.stack([1 - relative, relative], dim=1)
    assert classify_latents(shares, ClassThresholds(), LABELS) == classify_latents(
        shares.flip(1), ClassThresholds(), LABELS[::-1]
    )


@given(shares_of_two, st.randoms())
def test_classes_follow_the_latents(relative: torch.Tensor, random: object):
    order = list(range(len(relative)))
    random.shuffle(order)  # type: ignore[attr-defined]
    classes = classify_latents(relative, ClassThresholds(), LABELS)
    assert classify_latents(relative[order], ClassThresholds(), LABELS) == [classes[index] for index in order]


@given(shares_of_two)
def test_one_column_and_two_give_the_same_classes(relative: torch.Tensor):
    shares = torch.stack([1 - relative, relative], dim=1)
    assert classify_latents(relative, ClassThresholds(), LABELS) == classify_latents(shares, ClassThresholds(), LABELS)


def test_the_description_states_every_threshold():
    text = ClassThresholds(exclusive_above=0.95, shared_low=0.25, shared_high=0.75).describe()
    assert "> 0.95" in text
    assert "between 0.25 and 0.75" in text


@pytest.mark.parametrize(
    "values",
    [
        {"shared_low": 0.7, "shared_high": 0.3},
        {"exclusive_above": 0.6},
        {"exclusive_above": 1.0},
        {"shared_low": 0.0},
        {"shared_low": math.nan},
        {"shared_low": 0.5, "shared_high": 0.5},
    ],
)
def test_inconsistent_thresholds_are_refused(values: dict[str, float]):
    with pytest.raises(ConfigError, match="0 < shared_low < shared_high <= exclusive_above < 1"):
        ClassThresholds(**values)


def test_thresholds_that_leave_no_latent_shared_are_refused():
    shares = decoder_norm_shares(torch.ones(2, 4))
    with pytest.raises(ConfigError, match=r"4 sources .* 0\.25 in each.*for_n_sources\(4\)"):
        classify_latents(shares, ClassThresholds(), ("a", "b", "c", "d"))
    assert classify_latents(shares, ClassThresholds.for_n_sources(4), ("a", "b", "c", "d")) == ["shared", "shared"]


@pytest.mark.parametrize("band", [(0.25, 0.3), (0.2, 0.25)])
def test_a_band_that_an_even_latent_only_touches_is_refused(band: tuple[float, float]):
    thresholds = ClassThresholds(shared_low=band[0], shared_high=band[1])
    with pytest.raises(ConfigError, match="no latent could be shared"):
        classify_latents(torch.full((1, 4), 0.25), thresholds, ("a", "b", "c", "d"))


def test_a_lopsided_band_for_two_sources_is_refused():
    with pytest.raises(ConfigError, match=r"not symmetric about 0\.5"):
        classify_latents(torch.tensor([0.5]), ClassThresholds(shared_low=0.2), LABELS)


def test_norms_in_place_of_shares_are_refused():
    for not_shares in (torch.tensor([0.5, 1.5]), torch.tensor([[3.0, 4.0]]), torch.tensor([[0.2, 0.2]])):
        with pytest.raises(ConfigError, match="sum to 1"):
            classify_latents(not_shares, ClassThresholds(), LABELS)


def test_numbers_that_are_no_shares_are_seen_beside_a_latent_without_norm():
    with pytest.raises(ConfigError, match="sum to 1"):
        classify_latents(torch.tensor([math.nan, 1.5]), ClassThresholds(), LABELS)


def test_no_share_is_above_one_even_where_the_sum_is_one_within_rounding():
    with pytest.raises(ConfigError, match=r"lie in \[0, 1\]"):
        classify_latents(torch.tensor([[1.0005, 0.0]]), ClassThresholds(), LABELS)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(
        ShapeError, match=r"2 labels.*decoder_norm_shares, or \(d_sae,\) from relative_decoder_norms\.$"
    ):
        classify_latents(torch.full((2, 3), 1 / 3), ClassThresholds(), LABELS)
    with pytest.raises(ShapeError, match=r"3 labels.*decoder_norm_shares\.$"):
        classify_latents(torch.tensor([0.5]), ClassThresholds.for_n_sources(3), ("a", "b", "c"))
    with pytest.raises(ShapeError, match=r"shape \(3,\), and there are 1 latents"):
        classify_latents(torch.tensor([0.5]), ClassThresholds(), LABELS, dead=torch.zeros(3, dtype=torch.bool))


@pytest.mark.parametrize("labels", [("base",), ("base", "base"), ("base", " ")])
def test_labels_that_name_no_classes_are_refused(labels: tuple[str, ...]):
    with pytest.raises(ConfigError, match="label"):
        class_names(labels)


def test_counts_refuse_classes_of_other_labels():
    with pytest.raises(ConfigError, match="chat-only"):
        class_counts(["shared", "chat-only"], LABELS)


def test_classes_of_fewer_than_two_sources_have_no_thresholds():
    with pytest.raises(ConfigError, match="at least two"):
        ClassThresholds.for_n_sources(1)
