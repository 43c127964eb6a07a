"""The tensors of a weights file, taken by name with shapes that must fit each other, until none is left."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sae_lens_crosscoder.errors import CheckpointError

_COMPILED = ("_orig_mod.", "module.")
"""Parts that torch.compile and DataParallel put into the names of parameters."""


class TensorTable:
    """Tensors by name. What is taken is a finite floating tensor whose sizes agree with all others'.

    Args:
        file: Where they were read from, for messages.
        tensors: The tensors of the file.
        landmark: A name that has to be there; what stands in front of it is taken off all names that begin so.

    Raises:
        CheckpointError: The landmark is missing, or stands there under several prefixes.
    """

    def __init__(self, file: str, tensors: dict[str, Tensor], landmark: str) -> None:
        self.file = file
        self.sizes: dict[str, tuple[int, ...]] = {}
        plain: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            for part in _COMPILED:
                name = name.replace(part, "")
            if name in plain:
                raise CheckpointError(f"{file} holds {name} twice, under different prefixes.")
            plain[name] = tensor
        prefixes = [name.removesuffix(landmark) for name in plain if f".{name}".endswith(f".{landmark}")]
        if len(prefixes) != 1:
            many = f"{len(prefixes)} tensors {landmark}, so it is unclear which crosscoder is meant"
            raise CheckpointError(
                f"{file} holds {many if prefixes else f'no tensor {landmark}'}. It has {_some(plain)}."
            )
        self._left = {name.removeprefix(prefixes[0]): tensor for name, tensor in plain.items()}
        if len(self._left) < len(plain):
            raise CheckpointError(
                f"{file} holds tensors twice, with and without {prefixes[0]!r} in front: {_some(plain)}."
            )

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def size(self, dimension: str) -> int:
        """How long a dimension of the tensors taken so far is, or how many entries "*dimension" has."""
        product = 1
        for n in self.sizes[dimension]:
            product *= n
        return product

    def take(self, name: str, *dimensions: str, finite: bool = True) -> Tensor:
        """The tensor, floating and, unless said otherwise, finite.

        Args:
            name: Its name.
            dimensions: A name for each dimension, equal for equal sizes; "*name" stands for any number of them.
            finite: Whether NaN and infinities are refused.

        Raises:
            CheckpointError: It is missing, of another kind or shape, or holds NaN or infinities.
        """
        tensor = self.take_raw(name, *dimensions)
        if not tensor.is_floating_point():
            raise CheckpointError(f"{self.file}: {name} has dtype {tensor.dtype}, but weights are floating.")
        if finite and not torch.isfinite(tensor).all():
            n = int((~torch.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{self.file}: {n} of {tensor.numel()} values of {name} are NaN or infinite: training diverged, or the "
                "file is damaged."
            )
        return tensor

    def take_raw(self, name: str, *dimensions: str) -> Tensor:
        """The tensor, whatever its dtype and values.

        Raises:
            CheckpointError: It is missing or of another shape.
        """
        if name not in self._left:
            raise CheckpointError(f"{self.file} lacks the tensor {name}. It has {_some(self._left)}.")
        tensor = self._left.pop(name)
        self._check_shape(name, tensor, dimensions)
        return tensor

    def leave_out(self, names: Iterable[str]) -> None:
        """Pass over tensors that say nothing about codes and reconstructions."""
        for name in names:
            self._left.pop(name, None)

    def check_all_taken(self) -> None:
        """Raises:
        CheckpointError: There are tensors that the format does not have.
        """
        if self._left:
            raise CheckpointError(
                f"{self.file} holds tensors that its format does not have ({_some(self._left)}): it is another "
                "architecture, and read without them it would give other codes."
            )

    def _check_shape(self, name: str, tensor: Tensor, dimensions: tuple[str, ...]) -> None:
        shape = tuple(tensor.shape)
        starred = [i for i, dimension in enumerate(dimensions) if dimension.startswith("*")]
        n_starred = len(shape) - len(dimensions) + 1
        fits = n_starred >= 0 if starred else len(shape) == len(dimensions)
        position = 0
        for dimension in dimensions if fits else ():
            length = n_starred if dimension.startswith("*") else 1
            size = shape[position : position + length]
            position += length
            fits = fits and 0 not in size and self.sizes.setdefault(dimension, size) == size
        if not fits:
            known = ", ".join(
                f"{dimension} = {self.sizes[dimension]}" for dimension in dimensions if dimension in self.sizes
            )
            raise CheckpointError(
                f"{self.file}: {name} has shape {shape}, but should be ({', '.join(dimensions)})"
                f"{f' with {known}' if known else ''}."
            )


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:8])
