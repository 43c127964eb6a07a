"""Decoder geometry against numbers worked out by hand, and against what must hold for any decoder."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_crosscoder.diffing import (
    decoder_cosine,
    decoder_norm_shares,
    decoder_norms,
    minder_delta,
    relative_decoder_norms,
)
from sae_lens_crosscoder.errors import ConfigError, ShapeError

# Three latents on two sources of width 2: norms (3, 4 of 3-4-5), (5, 0), (0, 0).
DECODER = torch.tensor([[3.0, 0.0, 0.0, 4.0], [3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])


@st.composite
def decoders(draw: st.DrawFn, max_sources: int = 4) -> tuple[torch.Tensor, list[int]]:
    """Decoders of two or more sources of any width, in float64, some slices zero."""
    widths = draw(st.lists(st.integers(1, 5), min_size=2, max_size=max_sources))
    d_sae = draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    decoder = torch.randn(d_sae, sum(widths), generator=generator, dtype=torch.float64)
    is_zero = torch.rand(d_sae, len(widths), generator=generator) < 0.2
    return decoder * ~is_zero.repeat_interleave(torch.tensor(widths), dim=1), widths


def test_norms_are_the_lengths_of_the_slices():
    norms = decoder_norms(DECODER, [2, 2])
    assert norms.tolist() == [[3.0, 4.0], [5.0, 0.0], [0.0, 0.0]]


def test_norms_cut_the_decoder_where_the_widths_say():
    norms = decoder_norms(DECODER, [3, 1])
    assert norms.tolist() == [[3.0, 4.0], [5.0, 0.0], [0.0, 0.0]]
    assert decoder_norms(DECODER, [1, 1, 2]).tolist() == [[3.0, 0.0, 4.0], [3.0, 4.0, 0.0], [0.0, 0.0, 0.0]]


def test_scales_multiply_the_norms_of_their_source():
    norms = decoder_norms(DECODER, [2, 2], scales=[2.0, 0.5])
    assert norms.tolist() == [[6.0, 2.0], [10.0, 0.0], [0.0, 0.0]]


def test_scales_undo_the_folding_of_activation_normalisation():
    decoder = torch.randn(6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scales = [0.25, 3.0]
    folded = torch.cat([decoder[:, :3] / scales[0], decoder[:, 3:] / scales[1]], dim=1)
    torch.testing.assert_close(decoder_norms(folded, [3, 4], scales), decoder_norms(decoder, [3, 4]))
    assert not torch.allclose(
        relative_decoder_norms(decoder_norms(folded, [3, 4])), relative_decoder_norms(decoder_norms(decoder, [3, 4]))
    )


def test_scales_multiply_double_precision_norms_in_double_precision():
    # 0.1 as a float32 is 0.10000000149.
    decoder = torch.tensor([[3.0, 4.0, 1.0]], dtype=torch.float64)
    assert decoder_norms(decoder, [2, 1], scales=[0.1, 1.0])[0, 0].item() == pytest.approx(0.5, rel=1e-15)


def test_norms_of_half_precision_weights_are_measured_in_float32():
    # The square of 300 is beyond float16.
    norms = decoder_norms(torch.tensor([[300.0, 400.0, 300.0, 400.0]], dtype=torch.float16), [2, 2])
    assert norms.dtype == torch.float32
    assert norms.tolist() == [[500.0, 500.0]]


def test_a_trainable_decoder_gives_norms_without_gradient():
    assert not decoder_norms(torch.nn.Parameter(DECODER), [2, 2]).requires_grad


def test_relative_norm_is_the_share_of_the_second_source():
    relative = relative_decoder_norms(decoder_norms(DECODER, [2, 2]))
    assert relative[:2].tolist() == pytest.approx([4 / 7, 0.0])


def test_a_latent_without_norm_has_no_relative_norm():
    norms = decoder_norms(DECODER, [2, 2])
    assert math.isnan(relative_decoder_norms(norms)[2])
    assert torch.isnan(decoder_norm_shares(norms)[2]).all()
    assert math.isnan(minder_delta(norms)[2])


def test_relative_norm_of_a_named_source_among_three():
    norms = torch.tensor([[1.0, 2.0, 5.0]])
    assert decoder_norm_shares(norms)[0].tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    assert relative_decoder_norms(norms, source=2).tolist() == pytest.approx([5 / 8])
    assert relative_decoder_norms(norms, source=0).tolist() == pytest.approx([1 / 8])


@pytest.mark.parametrize("size", [1e-38, 1e38])
def test_shares_survive_norms_at_the_ends_of_float32(size: float):
    norms = torch.tensor([[3.0, 1.0]]) * size
    assert decoder_norm_shares(norms)[0].tolist() == pytest.approx([0.75, 0.25])


def test_shares_of_tiny_latents_survive_huge_ones_beside_them():
    norms = torch.tensor([[3e-38, 1e-38], [3e38, 1e38]])
    torch.testing.assert_close(decoder_norm_shares(norms), torch.tensor([[0.75, 0.25], [0.75, 0.25]]))


@pytest.mark.parametrize(
    ("base", "finetuned", "delta"),
    [(1.0, 0.0, 1.0), (0.0, 1.0, 0.0), (2.0, 2.0, 0.5), (5.0, 1.0, 0.9), (1.0, 5.0, 0.1)],
)
def test_minder_delta_divides_by_the_larger_norm_and_is_one_for_base_only(base: float, finetuned: float, delta: float):
    assert minder_delta(torch.tensor([[base, finetuned]])).item() == pytest.approx(delta)


def test_cosine_of_parallel_opposite_and_orthogonal_slices():
    decoder = torch.tensor([[1.0, 2.0, 2.0, 4.0], [1.0, 2.0, -1.0, -2.0], [1.0, 0.0, 0.0, 3.0], [3.0, 4.0, 4.0, 3.0]])
    assert decoder_cosine(decoder, [2, 2]).tolist() == pytest.approx([1.0, -1.0, 0.0, 24 / 25])


def test_cosine_with_a_zero_slice_is_nan():
    cosine = decoder_cosine(DECODER, [2, 2])
    assert cosine[0].item() == 0.0
    assert torch.isnan(cosine[1:]).all()


def test_cosine_takes_any_pair_of_equal_width():
    decoder = torch.tensor([[1.0, 0.0, 7.0, 2.0, 0.0]])
    assert decoder_cosine(decoder, [2, 1, 2], pair=(0, 2)).tolist() == [1.0]
    assert decoder_cosine(decoder, [2, 1, 2], pair=(2, 0)).tolist() == [1.0]


def test_cosine_never_leaves_its_range():
    part = torch.randn(2000, 5, generator=torch.Generator().manual_seed(1))
    cosine = decoder_cosine(torch.cat([part, 3 * part], dim=1), [5, 5])
    assert cosine.max() <= 1.0
    assert cosine.min() > 0.999
    opposite = decoder_cosine(torch.cat([part, -3 * part], dim=1), [5, 5])
    assert opposite.min() >= -1.0
    assert opposite.max() < -0.999


@given(decoders(max_sources=2))
def test_swapping_the_sources_maps_r_to_one_minus_r(decoder_and_widths: tuple[torch.Tensor, list[int]]):
    decoder, widths = decoder_and_widths
    swapped = torch.cat([decoder[:, widths[0] :], decoder[:, : widths[0]]], dim=1)
    there = decoder_norms(decoder, widths)
    back = decoder_norms(swapped, widths[::-1])
    torch.testing.assert_close(relative_decoder_norms(back), 1 - relative_decoder_norms(there), equal_nan=True)
    torch.testing.assert_close(minder_delta(back), 1 - minder_delta(there), equal_nan=True)


@given(decoders(), st.floats(1e-3, 1e3))
def test_shares_do_not_depend_on_the_length_of_a_latent(
    decoder_and_widths: tuple[torch.Tensor, list[int]], factor: float
):
    decoder, widths = decoder_and_widths
    shares = decoder_norm_shares(decoder_norms(decoder, widths))
    longer = decoder_norm_shares(decoder_norms(decoder * factor, widths))
    torch.testing.assert_close(longer, shares, equal_nan=True)


@given(decoders())
def test_shares_sum_to_one_and_follow_the_latents(decoder_and_widths: tuple[torch.Tensor, list[int]]):
    decoder, widths = decoder_and_widths
    shares = decoder_norm_shares(decoder_norms(decoder, widths))
    is_known = ~torch.isnan(shares).any(dim=1)
    torch.testing.assert_close(shares[is_known].sum(dim=1), torch.ones(int(is_known.sum()), dtype=torch.float64))
    order = torch.randperm(len(decoder))
    torch.testing.assert_close(
        decoder_norm_shares(decoder_norms(decoder[order], widths)), shares[order], equal_nan=True
    )


@given(decoders(max_sources=2))
def test_delta_and_relative_norm_are_one_function_of_each_other(decoder_and_widths: tuple[torch.Tensor, list[int]]):
    norms = decoder_norms(*decoder_and_widths)
    relative = relative_decoder_norms(norms)
    # From d[0] = 1 - r and d[1] = r.
    expected = 0.5 * ((1 - 2 * relative) / torch.maximum(relative, 1 - relative) + 1)
    torch.testing.assert_close(minder_delta(norms), expected, equal_nan=True)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ([2, 3], r"\[2, 3\] add up to 5, but the decoder has 4 columns"),
        ([4, 0], "at least one column"),
        ([], "at least one column"),
    ],
)
def test_widths_that_do_not_cut_the_decoder_are_refused(widths: list[int], message: str):
    with pytest.raises(ShapeError, match=message):
        decoder_norms(DECODER, widths)
    with pytest.raises((ShapeError, ConfigError)):
        decoder_cosine(DECODER, widths)


@pytest.mark.usefixtures("unchecked_types")
def test_a_decoder_cut_into_sources_already_is_refused():
    with pytest.raises(ShapeError, match=r"must be flat, \(d_sae, d_in\), not \(3, 2, 2\)"):
        decoder_norms(DECODER.unflatten(1, (2, 2)), [2, 2])


def test_scales_must_fit_the_sources_and_be_positive():
    with pytest.raises(ShapeError, match="3 scales for 2 sources"):
        decoder_norms(DECODER, [2, 2], scales=[1.0, 1.0, 1.0])
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="positive and finite"):
            decoder_norms(DECODER, [2, 2], scales=[1.0, bad])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_decoder_with_broken_numbers_is_refused(bad: float):
    decoder = DECODER.clone()
    decoder[1, 0] = bad
    with pytest.raises(ConfigError, match="1 of 3 latents have decoder weights that are infinite or not a number"):
        decoder_norms(decoder, [2, 2])
    with pytest.raises(ConfigError, match="not a number"):
        decoder_cosine(decoder, [2, 2])


def test_the_relative_norm_of_three_sources_needs_a_name():
    norms = torch.ones(2, 3)
    with pytest.raises(ConfigError, match="of 3 sources"):
        relative_decoder_norms(norms)
    for source in (3, -1):
        with pytest.raises(ConfigError, match=f"no source {source}: the norms are of sources 0 to 2"):
            relative_decoder_norms(norms, source=source)
    with pytest.raises(ShapeError, match="two sources, and these norms are of 3"):
        minder_delta(norms)


def test_one_source_has_nothing_to_be_relative_to():
    for function in (decoder_norm_shares, relative_decoder_norms, minder_delta):
        with pytest.raises(ShapeError, match="at least two sources"):
            function(torch.ones(3, 1))


def test_cosine_of_sources_of_different_width_is_refused():
    with pytest.raises(ShapeError, match="Source 0 is 1 wide and source 1 is 3"):
        decoder_cosine(DECODER, [1, 3])
    for pair in ((0, 0), (0, 2), (-1, 0)):
        with pytest.raises(ConfigError, match="two different sources out of 0 to 1"):
            decoder_cosine(DECODER, [2, 2], pair=pair)
