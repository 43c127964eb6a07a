"""How many latents can be dead, known without waiting for the device that counts."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

ASYNCHRONOUS_DEVICES = ("cuda",)
"""Devices that compute behind their host, which waits for them when it reads a number."""

_LOOK_AHEAD = 50  # steps: more than a GPU lies behind its host


class _Count:
    """A number on its way from the device."""

    def __init__(self, count: Int[Tensor, ""], last_step: int) -> None:
        self.last_step = last_step
        self._arrived: torch.cuda.Event | None = None
        self._count = count
        if count.is_cuda:
            self._count = torch.empty((), dtype=count.dtype, pin_memory=True).copy_(count, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    @property
    def has_arrived(self) -> bool:
        return self._arrived is None or self._arrived.query()

    def wait(self) -> int:
        if self._arrived is not None:
            self._arrived.synchronize()
        return int(self._count)


class DeadBound:
    """An upper bound of the number of dead latents, with which AuxK has shapes that the host knows.

    A latent is dead once it was silent for more than `window` steps. One that is dead within the next L steps has been
    silent for more than window - L steps by now: their number is copied to the host while both go on, and holds for L
    steps. Only if it has not arrived by then, as in the first step, is it waited for.

    Args:
        window: Steps of silence after which a latent counts as dead.
    """

    def __init__(self, window: float) -> None:
        self._window = window
        self._look_ahead = int(min(_LOOK_AHEAD, max(1, window // 4)))
        self._asked: _Count | None = None
        self._bound = 0
        self._step = self._last_step = -1

    def next(self, n_silent_steps: Int[Tensor, " d_sae"] | Float[Tensor, " d_sae"]) -> int:
        """The bound of the next step, from how many steps each latent has been silent; called once a step."""
        self._step += 1
        if self._asked is not None and self._asked.has_arrived:
            self._take(self._asked)
        if self._asked is None and 2 * (self._last_step - self._step) < self._look_ahead:
            n_near = (n_silent_steps > self._window - self._look_ahead).sum()
            self._asked = _Count(n_near, self._step + self._look_ahead)
        if self._asked is not None and self._step > self._last_step:
            self._take(self._asked)
        return self._bound

    def _take(self, asked: _Count) -> None:
        self._bound, self._last_step, self._asked = asked.wait(), asked.last_step, None
