"""How many latents can be dead, when the device is late."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_lens_crosscoder.training import dead_bound
from sae_lens_crosscoder.training.dead_bound import DeadBound, _Count


class Device:
    """Answers `delay` steps after it is asked, and counts how often it was waited for."""

    def __init__(self, delay: int) -> None:
        self.delay, self.now, self.n_asked, self.n_waits = delay, 0, 0, 0

    def ask(self, count: torch.Tensor, last_step: int) -> _Count:
        self.n_asked += 1
        return LateCount(count, last_step, self)


class LateCount(_Count):
    def __init__(self, count: torch.Tensor, last_step: int, device: Device) -> None:
        super().__init__(count, last_step)
        self.device, self.arrives = device, device.now + device.delay

    @property
    def has_arrived(self) -> bool:
        return self.device.now >= self.arrives

    def wait(self) -> int:
        self.device.n_waits += not self.has_arrived
        return super().wait()


def bounds_and_dead(device: Device, window: int, silence: list[list[int]]) -> list[tuple[int, int]]:
    """In every step the bound and the number of dead latents, of latents that fire every so many steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dead_bound, "_Count", device.ask)
        bound = DeadBound(window)
        counts = torch.zeros(len(silence))
        seen: list[tuple[int, int]] = []
        for step in range(160):
            device.now = step
            seen.append((bound.next(counts), int((counts > window).sum())))
            fires = torch.tensor([(step + start) % every == 0 for every, start in silence])
            counts = (counts + 1) * ~fires
    return seen


rhythms = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 300)), min_size=1, max_size=8)


@settings(max_examples=25)
@given(st.integers(0, 60), st.integers(1, 150), rhythms)
def test_no_more_latents_are_dead_than_the_bound_says(delay: int, window: int, silence: list[tuple[int, int]]) -> None:
    for bound, n_dead in bounds_and_dead(Device(delay), window, [list(rhythm) for rhythm in silence]):
        assert n_dead <= bound <= len(silence)


def test_a_device_is_waited_for_in_the_first_step_only() -> None:
    device = Device(delay=5)
    seen = bounds_and_dead(device, 100, [[1, 0], [500, 1]])
    assert device.n_waits == 1
    assert device.n_asked < 20
    # Silent from the first step on: dead from step 101, and near it for up to 25 steps before.
    assert seen[75] == (0, 0)
    assert seen[100] == (1, 0)
    assert seen[101] == (1, 1)


def test_a_device_that_is_far_behind_is_waited_for() -> None:
    device = Device(delay=1000)
    bounds_and_dead(device, 100, [[1, 0]])
    assert device.n_waits >= device.n_asked - 1 > 3  # the last one is not needed yet


def test_a_number_on_the_cpu_has_arrived() -> None:
    count = _Count(torch.tensor(3), last_step=7)
    assert count.has_arrived
    assert count.wait() == 3
