"""The memory of a step's weight gradients, kept for the next step's."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class GradientMemory:
    """Lends the memory of the last step's gradients to the next one's.

    A process gets memory page by page, and the system clears each page first: for tens of megabytes that takes as long
    as computing a gradient into them. CUDA's allocator keeps its memory by itself.
    """

    def __init__(self) -> None:
        self._spent: dict[str, Tensor] = {}

    def keep(self, weights: dict[str, nn.Parameter]) -> None:
        """Take the gradients away from weights whose step is made, and give back what is left from before.

        Nobody else may use these gradients afterwards.
        """
        self._spent.clear()
        for name, weight in weights.items():
            if weight.grad is not None and weight.grad.device.type == "cpu":
                self._spent[name] = weight.grad
            weight.grad = None

    def take(self, name: str, like: Float[Tensor, "n d"]) -> Float[Tensor, "n d"] | None:
        """Memory of the shape and order of a weight, with anything in it; None if there is none. It is given once."""
        spent = self._spent.pop(name, None)
        if spent is None or (spent.shape, spent.stride(), spent.dtype) != (like.shape, like.stride(), like.dtype):
            return None
        return spent
