"""The processes of a run, which `torchrun` starts, and all that they tell each other."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sae_lens_crosscoder.errors import CrosscoderError, LostProcessError, first_line

T = TypeVar("T")


@contextmanager
def with_others() -> Generator[None]:
    """A block that needs the other processes; on CUDA, NCCL ends a process that waits in vain without an error here.

    Raises:
        LostProcessError: One of them was lost, or did not come in time.
    """
    try:
        yield
    except RuntimeError as error:  # torch.distributed's own errors are RuntimeErrors too
        raise LostProcessError(
            f"This process waited in vain for another one: {first_line(error)}. That one was killed, failed, or hung "
            "for longer than process_timeout_seconds; what it printed says why. Nothing of the last checkpoint is "
            "lost: start the run anew with resume_from_checkpoint='auto', on as many processes as there are."
        ) from error


class Ranks:
    """All processes of a run; a process that is alone exchanges nothing.

    Every exchange of a run goes through here, and is entered by all ranks in the same order. What comes back is the
    same on every rank to the last bit, so that weights which all ranks hold stay equal.
    """

    def __init__(self) -> None:
        self.is_several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.n = dist.get_world_size() if self.is_several else 1
        """How many processes there are."""
        self.rank = dist.get_rank() if self.is_several else 0
        """The number of this one, from 0."""

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes what is written once."""
        return self.rank == 0

    @torch.no_grad()
    def sum(self, values: Tensor) -> Tensor:
        """The sum of all ranks' tensors."""
        return self._reduced(values, dist.ReduceOp.SUM)

    @torch.no_grad()
    def least(self, values: Tensor) -> Tensor:
        """The smallest of all ranks' values, at every position."""
        return self._reduced(values, dist.ReduceOp.MIN)

    @torch.no_grad()
    def gather(self, values: Tensor) -> list[Tensor]:
        """All ranks' tensors, which have one shape, in the order of ranks."""
        if not self.is_several:
            return [values]
        values = values.contiguous()
        parts = [torch.empty_like(values) for _ in range(self.n)]
        with with_others():
            dist.all_gather(parts, values)
        return parts

    @torch.no_grad()
    def copy_first(self, values: Tensor) -> None:
        """Write the first rank's tensor into that of every rank."""
        if self.is_several:
            sent = values.detach().contiguous()
            with with_others():
                dist.broadcast(sent, src=0)
            values.copy_(sent)

    def from_first(self, value: Any) -> Any:
        """What the first rank has; a picklable object."""
        if not self.is_several:
            return value
        box = [value]
        with with_others():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def done_by_first(self, act: Callable[[], T]) -> T:
        """What a function gives that only the first rank calls; an error of ours that it raises is raised by all."""
        outcome: tuple[Any, CrosscoderError | None] = None, None
        if self.is_first:
            try:
                outcome = act(), None
            except CrosscoderError as error:
                outcome = None, error
        value, problem = self.from_first(outcome)
        if problem is not None:
            raise problem
        return value

    def of_each(self, value: Any) -> list[Any]:
        """What every rank has, in the order of ranks; picklable objects."""
        if not self.is_several:
            return [value]
        box: list[Any] = [None] * self.n
        with with_others():
            dist.all_gather_object(box, value)
        return box

    def wait(self) -> None:
        """Return when all ranks are here."""
        if self.is_several:
            with with_others():
                dist.barrier()

    def _reduced(self, values: Tensor, operation: Any) -> Tensor:
        if not self.is_several:
            return values
        total = values.clone(memory_format=torch.contiguous_format)
        with with_others():
            dist.all_reduce(total, operation)
        return total


class SumOfParts(torch.autograd.Function):
    """The sum over ranks, whose gradient is each part's own: all ranks compute the same from the sum."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, ranks: Ranks) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return ranks.sum(part)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient, None
