"""Stopping between two steps when the system asks for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from sae_lens_crosscoder.training.trainer import CrosscoderTrainer


@contextmanager
def stops_on_signal(trainer: CrosscoderTrainer) -> Generator[None]:
    """Ask the trainer to stop after its current step when SIGINT or SIGTERM comes, instead of breaking the step."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals can only be handled in the main thread
        return

    def request_stop(number: int, _frame: FrameType | None) -> None:
        if trainer.stop_requested:  # asked twice: stop at once, without saving
            signal.signal(number, previous[signal.Signals(number)])
            signal.raise_signal(number)
        trainer.stop_requested = True

    previous = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
