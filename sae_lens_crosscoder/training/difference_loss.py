"""The reconstruction error that weighs what two sources have in common apart from their difference."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def difference_weighted_errors(
    preds: Float[Tensor, "... d_in"], target: Float[Tensor, "... d_in"], weight: float
) -> Float[Tensor, "... d_in"]:
    """Errors whose sum over columns is |e_1|^2 + |e_2|^2 + 2 weight e_1 . e_2, the sources being the two halves.

    Proposed by Dumas (2025) as a crosscoder that keeps the advantage of a diff-SAE.
    """
    first, second = (preds - target).chunk(2, dim=-1)
    cross = weight * first * second
    return torch.cat([first.pow(2) + cross, second.pow(2) + cross], dim=-1)
