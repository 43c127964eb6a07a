from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sae_lens.training.mixing_buffer import mixing_buffer

from sae_lens_crosscoder.activations import ShuffleBuffer
from sae_lens_crosscoder.errors import ConfigError

WIDTHS = (2, 3)


@dataclass
class Case:
    """A buffer and how many rows arrive at a time."""

    arrivals: list[int]
    n_tokens: int
    n_added: int
    batch_size: int
    mix_fraction: float

    def buffer(self, seed: int = 0, **fields: object) -> ShuffleBuffer:
        generator = torch.Generator().manual_seed(seed)
        return ShuffleBuffer(
            self.n_tokens,
            self.n_added,
            sum(WIDTHS),
            self.batch_size,
            self.mix_fraction,
            generator=generator,
            **fields,  # type: ignore[arg-type]
        )

    def rows(self) -> list[torch.Tensor]:
        """Rows that are all different: row i holds i, i + 0.1, ..."""
        all_rows = torch.arange(sum(self.arrivals))[:, None] + 0.1 * torch.arange(sum(WIDTHS))
        return list(all_rows.split(self.arrivals))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    batch_size = draw(st.integers(1, 8))
    n_tokens = draw(st.integers(2 * batch_size, 40))
    n_added = draw(st.integers(1, 30))
    arrivals = draw(st.lists(st.integers(0, n_added), min_size=1, max_size=25))
    return Case(arrivals, n_tokens, n_added, batch_size, draw(st.sampled_from([0.0, 0.25, 0.5])))


def serve(buffer: ShuffleBuffer, arrivals: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """What the store does with a buffer."""
    for rows in arrivals:
        buffer.add(rows.split(WIDTHS, dim=-1))
        while buffer.is_ready:
            yield buffer.next_batch(torch.float32)


def held_rows(buffer: ShuffleBuffer) -> torch.Tensor:
    return torch.cat([buffer.order, *buffer.added])


def served_by_saelens(case: Case, seed: int) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    return list(mixing_buffer(case.n_tokens, case.batch_size, iter(case.rows()), case.mix_fraction))


@given(case=cases(), seed=st.integers(0, 1000))
def test_batches_are_those_of_saelens_mixing_buffer_with_the_same_random_numbers(case: Case, seed: int):
    ours = list(serve(case.buffer(seed), case.rows()))
    # At the end of its data SAELens serves what it still holds; ours belongs to an endless stream.
    theirs = served_by_saelens(case, seed)[: len(ours)]
    assert len(theirs) == len(ours)
    for batch, expected in zip(ours, theirs, strict=True):
        assert torch.equal(batch, expected)


def test_a_batch_is_served_as_soon_as_saelens_serves_one():
    case = Case([7] * 30, n_tokens=32, n_added=7, batch_size=4, mix_fraction=0.5)
    ours = list(serve(case.buffer(), case.rows()))
    held = 210 - 4 * len(ours)
    assert len(served_by_saelens(case, 0)) == len(ours) + held // 4
    assert held < 32


@given(case=cases(), seed=st.integers(0, 1000))
def test_every_row_is_served_at_most_once_and_none_is_lost(case: Case, seed: int):
    buffer = case.buffer(seed)
    served = [batch[:, 0] for batch in serve(buffer, case.rows())]
    rows = held_rows(buffer)
    seen = torch.cat([*served, buffer.pool[rows][:, 0]]).sort().values
    assert seen.tolist() == list(range(sum(case.arrivals)))
    assert sorted([*rows.tolist(), *buffer.free.tolist()]) == list(range(len(buffer.pool)))


def test_the_buffer_takes_a_forward_pass_whatever_share_is_kept_and_however_large_a_batch_is():
    # Twelve of sixteen rows are kept and a batch has eight: up to nineteen are held after serving.
    case = Case([], n_tokens=16, n_added=0, batch_size=8, mix_fraction=0.75)
    for n_added in range(1, 25):
        case.n_added, case.arrivals = n_added, [n_added] * 20
        buffer = case.buffer()
        n_served = sum(len(batch) for batch in serve(buffer, case.rows()))
        assert n_served + len(held_rows(buffer)) == 20 * n_added


@given(case=cases(), cut=st.integers(0, 24))
def test_a_restored_buffer_goes_on_as_if_it_had_never_stopped(case: Case, cut: int):
    rows = case.rows()
    unbroken = case.buffer()
    head = list(serve(unbroken, rows[:cut]))
    state = {name: tensor.clone() for name, tensor in unbroken.state_dict().items()}
    random_state = unbroken.generator.get_state()  # type: ignore[union-attr]
    tail = list(serve(unbroken, rows[cut:]))

    resumed = case.buffer(seed=99)
    resumed.load_state_dict(state)
    resumed.generator.set_state(random_state)  # type: ignore[union-attr]
    again = list(serve(resumed, rows[cut:]))
    assert len(again) == len(tail)
    assert all(torch.equal(a, b) for a, b in zip(again, tail, strict=True))
    assert len({row for batch in [*head, *again] for row in batch[:, 0].tolist()}) == case.batch_size * len(
        head + again
    )


def test_batches_that_are_ready_survive_a_restart():
    case = Case([16], n_tokens=16, n_added=16, batch_size=2, mix_fraction=0.5)
    buffer = case.buffer()
    buffer.add(case.rows()[0].split(WIDTHS, dim=-1))
    buffer.next_batch(torch.float32)
    assert buffer.n_batches_ready == 3
    resumed = case.buffer()
    resumed.load_state_dict(buffer.state_dict())
    assert resumed.n_batches_ready == 3
    assert torch.equal(resumed.next_batch(torch.float32), buffer.next_batch(torch.float32))


@given(case=cases(), n_ahead=st.integers(0, 60), seed=st.integers(0, 1000))
def test_rows_that_come_as_early_as_there_is_room_change_no_batch(case: Case, n_ahead: int, seed: int):
    in_time = list(serve(case.buffer(seed), case.rows()))
    buffer, waiting, batches = case.buffer(seed, n_ahead_tokens=n_ahead), case.rows(), list[torch.Tensor]()
    while waiting or buffer.is_ready:
        while waiting and buffer.has_room:
            buffer.add(waiting.pop(0).split(WIDTHS, dim=-1))
        assert buffer.is_ready or not waiting, "no room for rows, and no batch either"
        if buffer.is_ready:
            batches.append(buffer.next_batch(torch.float32))
    assert len(batches) == len(in_time)
    assert all(torch.equal(batch, expected) for batch, expected in zip(batches, in_time, strict=True))


def test_rows_are_added_while_batches_are_served_and_not_only_when_none_is_left():
    case = Case([4] * 20, n_tokens=16, n_added=4, batch_size=4, mix_fraction=0.0)
    buffer, waiting = case.buffer(n_ahead_tokens=4), case.rows()
    n_added_at: list[int] = []
    for _ in range(10):
        while waiting and buffer.has_room:
            buffer.add(waiting.pop(0).split(WIDTHS, dim=-1))
        n_added_at.append(20 - len(waiting))
        buffer.next_batch(torch.float32)
    assert n_added_at == [6, 7, 8, 9, 10, 11, 12, 13, 14, 15]


@given(case=cases(), n_served=st.integers(0, 10))
def test_rows_that_came_early_survive_a_restart(case: Case, n_served: int):
    def fill(buffer: ShuffleBuffer, waiting: list[torch.Tensor]) -> None:
        while waiting and buffer.has_room:
            buffer.add(waiting.pop(0).split(WIDTHS, dim=-1))

    unbroken, resumed = (case.buffer(n_ahead_tokens=20) for _ in range(2))
    waiting = case.rows()
    fill(unbroken, waiting)
    for _ in range(n_served):
        if unbroken.is_ready:
            unbroken.next_batch(torch.float32)
            fill(unbroken, waiting)
    resumed.load_state_dict({name: tensor.clone() for name, tensor in unbroken.state_dict().items()})
    resumed.generator.set_state(unbroken.generator.get_state())  # type: ignore[union-attr]
    still_waiting = list(waiting)
    while unbroken.is_ready:
        assert torch.equal(resumed.next_batch(torch.float32), unbroken.next_batch(torch.float32))
        fill(unbroken, waiting)
        fill(resumed, still_waiting)
    assert not resumed.is_ready


def test_rows_are_written_after_served_ones_are_read_and_read_after_they_are_written():
    case = Case([4] * 3, n_tokens=4, n_added=4, batch_size=4, mix_fraction=0.0)
    buffer, events = case.buffer(), list[str]()

    class Noting:
        """Stands for a pair of CUDA events."""

        def __init__(self, what: str) -> None:
            self.what = what

        def record(self) -> None:
            events.append(f"{self.what} recorded, {len(buffer.free)} free")

        def wait(self) -> None:
            events.append(f"{self.what} waited for")

    buffer._written, buffer._served = Noting("written"), Noting("served")  # type: ignore[assignment]
    for rows in case.rows()[:2]:
        buffer.add(rows.split(WIDTHS, dim=-1))
    buffer.next_batch(torch.float32)
    write = ["served waited for", "written recorded, {} free"]
    # Rows are free for others only after the reading of them is marked.
    assert events == [
        *(line.format(free) for free in (4, 0) for line in write),
        "written waited for",
        "served recorded, 0 free",
    ]
    assert len(buffer.free) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rows_are_kept_in_the_buffers_dtype_and_served_in_the_asked_one(dtype: torch.dtype):
    case = Case([10, 10, 10], n_tokens=16, n_added=10, batch_size=4, mix_fraction=0.0)
    rows = [torch.randn(10, 5) for _ in range(3)]
    batches = list(serve(case.buffer(dtype=dtype), rows))
    assert case.buffer(dtype=dtype).pool.dtype == dtype
    expected = torch.cat(rows).to(dtype).to(torch.float32)[: 4 * len(batches)]
    assert torch.equal(torch.cat(batches), expected)
    assert len(batches) >= 5


def test_without_mixing_rows_are_served_in_order():
    case = Case([3] * 20, n_tokens=10, n_added=3, batch_size=5, mix_fraction=0.0)
    batches = torch.cat(list(serve(case.buffer(), case.rows())))
    assert batches[:, 0].tolist() == list(range(len(batches)))


def test_a_served_batch_is_a_copy_that_later_rows_do_not_overwrite():
    case = Case([8] * 10, n_tokens=16, n_added=8, batch_size=8, mix_fraction=0.0)
    batches = [(batch, batch.clone()) for batch in serve(case.buffer(), case.rows())]
    assert all(torch.equal(batch, copy) for batch, copy in batches)


def test_a_buffer_smaller_than_a_batch_is_refused():
    with pytest.raises(ConfigError, match=r"holds 8 tokens but a training batch has 9. Raise n_batches_in_buffer"):
        ShuffleBuffer(8, 4, 2, 9)


@pytest.mark.parametrize("mix_fraction", [-0.1, 1.1, float("nan")])
def test_a_share_outside_zero_to_one_is_refused(mix_fraction: float):
    with pytest.raises(ConfigError, match=r"activations_mixing_fraction=.* must lie between 0 and 1"):
        ShuffleBuffer(8, 4, 2, 4, mix_fraction)


def test_more_rows_at_once_than_there_is_room_for_are_refused():
    buffer = ShuffleBuffer(8, 4, 2, 4)
    with pytest.raises(ConfigError, match="13 rows were added to an activation buffer with room for 12"):
        buffer.add([torch.zeros(13, 2)])


@pytest.mark.parametrize("other", [(9, 4, 2), (8, 4, 3)])
def test_the_state_of_another_buffer_is_refused(other: tuple[int, int, int]):
    state = ShuffleBuffer(*other, 4).state_dict()
    with pytest.raises(ConfigError, match=r"checkpoint's activation buffer holds .* this run's 8 tokens 2 wide"):
        ShuffleBuffer(8, 4, 2, 4).load_state_dict(state)


@pytest.mark.parametrize(("before", "after"), [(24, 0), (0, 24)])
def test_the_state_of_a_run_that_harvests_further_ahead_or_less_is_taken(before: int, after: int):
    case = Case([4] * 20, n_tokens=16, n_added=4, batch_size=4, mix_fraction=0.5)
    saved, resumed, waiting = case.buffer(n_ahead_tokens=before), case.buffer(n_ahead_tokens=after), case.rows()
    while saved.has_room:
        saved.add(waiting.pop(0).split(WIDTHS, dim=-1))
    resumed.load_state_dict(saved.state_dict())
    resumed.generator.set_state(saved.generator.get_state())  # type: ignore[union-attr]
    for rows in waiting:
        for buffer in (saved, resumed):
            assert buffer.is_ready or buffer.has_room
            while not buffer.is_ready:
                buffer.add(rows.split(WIDTHS, dim=-1))
        assert torch.equal(resumed.next_batch(torch.float32), saved.next_batch(torch.float32))


def test_the_state_of_another_dtype_is_refused():
    state = ShuffleBuffer(8, 4, 2, 4, dtype=torch.bfloat16).state_dict()
    with pytest.raises(ConfigError, match=r"torch.bfloat16, this run's 8 tokens"):
        ShuffleBuffer(8, 4, 2, 4).load_state_dict(state)
