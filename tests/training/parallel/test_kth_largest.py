from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_crosscoder.training.parallel.kth_largest import kth_largest


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@given(n_rows=st.integers(1, 4), n=st.integers(1, 30), k=st.integers(1, 35), seed=st.integers(0, 1000))
def test_it_is_what_sorting_gives(dtype: torch.dtype, n_rows: int, n: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.relu(torch.randn(n_rows, n, generator=generator)).to(dtype) * 10.0 ** (seed % 9 - 4)
    ordered = scores.sort(dim=1, descending=True).values
    expected = ordered[:, k - 1 : k] if k <= n else torch.zeros(n_rows, 1, dtype=dtype)
    assert torch.equal(kth_largest(scores, k, lambda counts: counts), expected)


def test_a_row_of_float32_takes_three_sums_of_2048_counts() -> None:
    sums: list[torch.Size] = []

    def noted(counts: torch.Tensor) -> torch.Tensor:
        sums.append(counts.shape)
        return counts

    assert kth_largest(torch.tensor([[5.0, 1.0, 3.0, 4.0]]), 2, noted).item() == 4.0
    assert sums == [(1, 2048)] * 3


def test_a_negative_zero_is_a_zero() -> None:
    scores = torch.tensor([[-0.0, 2.0, 0.0]])
    assert kth_largest(scores, 2, lambda counts: counts).item() == 0.0
    assert kth_largest(scores, 1, lambda counts: counts).item() == 2.0


def test_a_rank_without_scores_takes_part() -> None:
    n_sums = 0

    def total(counts: torch.Tensor) -> torch.Tensor:
        nonlocal n_sums
        n_sums += 1
        return counts

    assert kth_largest(torch.empty(1, 0, dtype=torch.float64), 3, total).item() == 0.0
    assert n_sums == 6
