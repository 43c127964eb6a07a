"""Active pairs against the dense matrix that they were taken from."""

import pytest
import torch

from sae_lens_crosscoder.diffing import ActiveLatents


def codes(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Seven tokens, nine latents of which the third and the last never fire; small integers, exact in any dtype."""
    found = torch.randint(-3, 4, (7, 9), generator=torch.Generator().manual_seed(0)).clamp(min=0).to(dtype)
    found[:, [2, 8]] = 0
    return found


@pytest.mark.parametrize(("start", "stop"), [(0, 9), (0, 4), (3, 7), (5, 9), (2, 3)])
def test_weighted_latents_are_the_dense_product_of_those_latents_alone(start: int, stop: int) -> None:
    table = torch.randn(7, 5, dtype=torch.float64)
    found = ActiveLatents.from_dense(codes()).weighted_latents(table, start, stop)
    torch.testing.assert_close(found, codes()[:, start:stop].T @ table)


def test_weighted_rows_are_the_dense_product_in_the_dtype_of_the_table() -> None:
    table = torch.randn(9, 5, dtype=torch.float64)
    found = ActiveLatents.from_dense(codes(torch.float32)).weighted_rows(table)
    torch.testing.assert_close(found, codes() @ table)


def test_codes_in_half_precision_become_float32() -> None:
    active = ActiveLatents.from_dense(codes(torch.bfloat16))
    assert active.values.dtype == torch.float32
    assert torch.equal(active.values, ActiveLatents.from_dense(codes(torch.float32)).values)
