"""Tensors as compact text inside a page: laid out one after the other, deflated, in base64."""

from __future__ import annotations

import base64
import zlib

import torch
from jaxtyping import Int8
from torch import Tensor

_KINDS = {
    torch.float32: "f4",
    torch.float64: "f8",
    torch.int32: "i4",
    torch.uint16: "u2",
    torch.uint8: "u1",
    torch.int8: "i1",
}
_ALIGNMENT = 8  # a Float64Array has to start at a multiple of its item size


class Blocks:
    """Named arrays, gathered in blocks that the page unpacks when it first needs one of them."""

    def __init__(self) -> None:
        self._content: dict[str, bytearray] = {}
        self._places: dict[str, tuple[str, str, int, int]] = {}

    def add(self, block: str, name: str, values: Tensor) -> None:
        """Append an array of any shape, row by row, in the type it has (see `_KINDS`), little-endian."""
        content = self._content.setdefault(block, bytearray())
        content.extend(bytes(-len(content) % _ALIGNMENT))
        self._places[f"{block}.{name}"] = (block, _KINDS[values.dtype], len(content), values.numel())
        content.extend(values.detach().cpu().contiguous().numpy().tobytes())

    @property
    def places(self) -> dict[str, tuple[str, str, int, int]]:
        """Block, type, first byte and number of items of every array, by "block.name"."""
        return dict(self._places)

    def encoded(self) -> dict[str, str]:
        """Every block, deflated (RFC 1950), in base64."""
        return {
            name: base64.b64encode(zlib.compress(bytes(content), 6)).decode() for name, content in self._content.items()
        }


def smallest_index_type(n_values: int) -> torch.dtype:
    """The smallest type that holds the indices of so many values."""
    return torch.uint8 if n_values <= 256 else torch.uint16 if n_values <= 65536 else torch.int32


def in_steps(values: Tensor, largest: Tensor) -> Int8[Tensor, "*shape"]:
    """Values as whole 127ths of the largest, for colours; a value that is not 0 is never shown as 0. NaN becomes 0."""
    steps = values.nan_to_num(0.0) / largest.where(largest > 0, torch.ones_like(largest)) * 127
    rounded = torch.where(steps.abs() < 1, steps.sign(), steps.round())
    return rounded.clamp(-127, 127).to(torch.int8)
