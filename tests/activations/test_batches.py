from __future__ import annotations

import gc
import os
import signal
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import paired_store, token_dataset

from sae_lens_crosscoder import PairedActivationsStore
from sae_lens_crosscoder.activations import TrainingBatches

pytestmark = pytest.mark.filterwarnings("ignore:The data set ended")


def served(batches: Iterator[torch.Tensor], n_batches: int) -> torch.Tensor:
    return torch.cat(list(islice(batches, n_batches)))


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited for 20 s"
        time.sleep(0.002)


def harvesters() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "harvest"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert harvesters() == []


@pytest.mark.parametrize("n_ahead", [0, 4, 40])
def test_batches_with_a_thread_are_the_same_batches(n_ahead: int):
    plain = served(paired_store(), 90)
    batches = TrainingBatches(paired_store(n_ahead_prompts=n_ahead), in_background=True)
    try:
        assert torch.equal(served(batches, 90), plain)
    finally:
        batches.close()


def test_the_models_run_while_batches_are_used():
    store = paired_store(n_ahead_prompts=4, buffer_tokens=1024)
    batches = TrainingBatches(store, in_background=True)
    try:
        next(batches)
        n_read = store.n_dataset_processed
        for _ in range(2):  # two batches of 32 make room for a pass of 4 * 16 tokens
            assert store.buffer.n_batches_ready > 0
            next(batches)
        wait_until(lambda: store.n_dataset_processed > n_read)
        assert store.buffer.n_batches_ready > 0
    finally:
        batches.close()


def test_a_store_that_was_saved_while_a_thread_ran_ahead_goes_on_with_the_next_batch(tmp_path: Path):
    path = str(tmp_path / "state.safetensors")
    plain = served(paired_store(), 9)
    store = paired_store(n_ahead_prompts=12)
    batches = TrainingBatches(store, in_background=True)
    head = served(batches, 4)
    wait_until(lambda: not store.buffer.has_room)
    with batches.paused():
        store.save(path)
    batches.close()
    assert len(store.buffer.added) > 0
    resumed = paired_store(n_ahead_prompts=12)
    resumed.load(path)
    assert resumed.n_batches_served == 4
    assert torch.equal(torch.cat([head, served(resumed, 5)]), plain)


def test_while_paused_the_thread_does_nothing():
    store = paired_store(n_ahead_prompts=200)
    add_pass, n_passes = store.add_pass, [0]

    def slow() -> None:
        n_passes[0] += 1
        time.sleep(0.02)
        add_pass()

    store.add_pass = slow  # type: ignore[method-assign]
    batches = TrainingBatches(store, in_background=True)
    try:
        wait_until(lambda: n_passes[0] > 0)
        n_before = n_passes[0]
        with batches.paused():
            n_paused, n_read = n_passes[0], store.n_dataset_processed
            assert n_paused <= n_before + 1  # the pass that the thread was in
            time.sleep(0.1)
            assert (n_passes[0], store.n_dataset_processed) == (n_paused, n_read)
            assert store.buffer.has_room
        wait_until(lambda: n_passes[0] > n_paused)
    finally:
        batches.close()


class Broken(Exception):
    pass


def breaking_store(after: int) -> PairedActivationsStore:
    store = paired_store(mix_fraction=0.0)
    harvest, n_passes = store.harvest, [0]

    def harvest_or_break(tokens: torch.Tensor) -> list[torch.Tensor]:
        n_passes[0] += 1
        if n_passes[0] > after:
            raise Broken("out of memory, say")
        return harvest(tokens)

    store.harvest = harvest_or_break  # type: ignore[method-assign]
    return store


def test_a_fault_in_the_thread_comes_where_it_would_come_without_one_and_with_its_own_traceback():
    without = breaking_store(after=5)
    n_before = 0
    with pytest.raises(Broken):
        for n_before, _ in enumerate(without, start=1):  # noqa: B007
            pass
    batches = TrainingBatches(breaking_store(after=5), in_background=True)
    try:
        assert len(list(islice(batches, n_before))) == n_before
        for _ in range(2):  # and whoever asks again is told again
            with pytest.raises(Broken, match="out of memory") as caught:
                next(batches)
            names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
            assert names[-1] == "harvest_or_break"
            assert "add_pass" in names
    finally:
        batches.close()


def test_whoever_waits_for_a_batch_can_be_interrupted(monkeypatch: pytest.MonkeyPatch):
    store = paired_store()
    holds = threading.Event()
    monkeypatch.setattr(store, "add_pass", lambda: holds.wait(20))
    batches = TrainingBatches(store, in_background=True)
    timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    assert time.monotonic() - began < 10
    timer.join()
    holds.set()
    batches.close()


def test_after_closing_nothing_holds_the_store():
    store = paired_store()
    batches = TrainingBatches(store, in_background=True)
    next(batches)
    batches.close()
    assert harvesters() == []
    pool, held = weakref.ref(store.buffer.pool), weakref.ref(store)
    del batches, store
    gc.collect()
    assert (pool(), held()) == (None, None)


def test_closing_twice_and_asking_afterwards_do_not_hang():
    batches = TrainingBatches(paired_store(data=token_dataset(20), mix_fraction=0.0), in_background=True)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(RuntimeError, match="was closed"):
        served(batches, 100)


def test_without_a_thread_nothing_runs_ahead():
    store: Any = paired_store(n_ahead_prompts=12)
    batches = TrainingBatches(store)
    next(batches)
    with batches.paused():
        assert len(store.buffer.added) == 0
    batches.close()
