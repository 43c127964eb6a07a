"""The k largest scores, with one rule for ties that the dense and the sparse step share."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
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
            above = scores > kth
            ties = kept & ~above
            kept = above | (ties & (ties.cumsum(dim=-1, dtype=torch.int32) <= k - above.sum(dim=-1, keepdim=True)))
        return kept
    return scores > 0
