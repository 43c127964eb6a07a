"""The k largest scores, with one rule for ties that the dense and the sparse step share."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def largest(scores: Float[Tensor, "... n"], k: int) -> Bool[Tensor, "... n"]:
    """Where the k largest of the last dimension stand, fewer if fewer are positive.

    Of equal scores the first ones stay, so that the choice does not depend on how it was computed.
    """
    if k < 1:
        return torch.zeros_like(scores, dtype=torch.bool)
    if k < scores.shape[-1]:
        kth = scores.topk(k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
        kept = (scores >= kth) & (scores > 0)
        if bool((kept.sum(dim=-1) > k).any()):
            kept = _first_of_equal(scores, kth, k) & kept
        return kept
    return scores > 0


def positions_of_largest(scores: Float[Tensor, "... n"], k: int) -> Int[Tensor, "... k"]:
    """Positions of the k largest of the last dimension, rising; of equal scores the first ones stay.

    Unlike `largest` it always gives k, also if fewer are positive: shapes do not depend on the data, so that a GPU
    computes on without being waited for. Not-a-numbers give arbitrary positions.

    Args:
        scores: Scores.
        k: At most n.
    """
    if k < 1:
        return torch.zeros(*scores.shape[:-1], 0, dtype=torch.long, device=scores.device)
    kth = scores.topk(k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    counted = _first_of_equal(scores, kth, k).cumsum(dim=-1, dtype=torch.int32)
    ranks = torch.arange(1, k + 1, dtype=torch.int32, device=scores.device).expand(*scores.shape[:-1], k)
    return torch.searchsorted(counted, ranks.contiguous()).clamp(max=scores.shape[-1] - 1)


def _first_of_equal(scores: Tensor, kth: Tensor, k: int) -> Tensor:
    """Which scores are above the k-th largest, and as many of those equal to it, the first ones, as make k."""
    above, ties = scores > kth, scores == kth
    return above | (ties & (ties.cumsum(dim=-1, dtype=torch.int32) <= k - above.sum(dim=-1, keepdim=True)))
