"""The point that training may set the decoder bias to before it begins."""

from __future__ import annotations

from typing import cast

from jaxtyping import Float
from torch import Tensor


def geometric_median(
    points: Float[Tensor, "n d"], max_steps: int = 100, tolerance: float = 1e-6
) -> Float[Tensor, " d"]:
    """The point with the least sum of distances to all points, by Weiszfeld's algorithm."""
    median = points.mean(dim=0)
    for _ in range(max_steps):
        weights = 1 / (points - median).norm(dim=-1, keepdim=True).clamp(min=1e-8)
        moved = (weights * points).sum(dim=0) / weights.sum()
        step = (moved - median).norm() / median.norm().clamp(min=1e-8)
        median = moved
        if step < tolerance:
            break
    return cast(Tensor, median)
