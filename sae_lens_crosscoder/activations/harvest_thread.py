"""A thread that runs the models (or reads the cache) while the trainer trains."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

import torch

from sae_lens_crosscoder.activations.store import PairedActivationsStore
from sae_lens_crosscoder.activations.streams import side_stream


class HarvestThread:
    """Adds rows to a store's buffer as soon as it has room, in a thread of its own and on CUDA on a stream of its own.

    Args:
        store: Whose buffer is filled. Only this thread calls `add_pass` until `close`.
    """

    def __init__(self, store: PairedActivationsStore) -> None:
        self._store = store
        self._buffer = store.buffer
        # Guards the four below, and is notified when one of them or the buffer changes.
        self._condition = threading.Condition()
        self._n_pauses = 0
        self._is_closed = False
        self._in_pass = False
        self._error: BaseException | None = None
        store.care.stops.append(self._asks_to_stop)
        self._thread = threading.Thread(target=self._run, name="harvest", daemon=True)
        self._thread.start()

    def wait_until_ready(self) -> None:
        """Return when the buffer can serve a batch.

        Raises:
            BaseException: What ended the thread, with the traceback it had there, once all batches before are served.
        """
        with self._condition:
            self._condition.wait_for(lambda: self._buffer.is_ready or self._error is not None or self._is_closed)
        if not self._buffer.is_ready:
            raise self._error or RuntimeError("The thread that harvests activations was closed.")

    def rows_were_served(self) -> None:
        """Tell the thread that the buffer has room again."""
        with self._changing():
            pass

    @contextmanager
    def paused(self) -> Generator[None]:
        """Keep the thread from the store and the models inside the `with` block; the pass that it is in ends before."""
        with self._changing():
            self._n_pauses += 1
        try:
            with self._condition:
                self._condition.wait_for(lambda: not self._in_pass)
            yield
        finally:
            with self._changing():
                self._n_pauses -= 1

    def close(self) -> None:
        """End the thread, after the pass that it is in."""
        with self._changing():
            self._is_closed = True
        self._thread.join()
        if self._asks_to_stop in self._store.care.stops:
            self._store.care.stops.remove(self._asks_to_stop)

    def _asks_to_stop(self) -> bool:
        return self._is_closed

    @contextmanager
    def _changing(self) -> Generator[None]:
        with self._condition:
            yield
            self._condition.notify_all()

    def _run(self) -> None:
        try:
            with torch.no_grad(), side_stream(self._buffer.pool.device):
                while self._begins_pass():
                    try:
                        self._store.add_pass()
                    finally:
                        with self._changing():
                            self._in_pass = False
        except BaseException as error:  # whatever it is, the trainer has to hear of it
            with self._changing():
                self._error = error

    def _begins_pass(self) -> bool:
        """Wait until there is room; False when the thread is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._is_closed or (self._n_pauses == 0 and self._buffer.has_room))
            self._in_pass = not self._is_closed
            return self._in_pass
