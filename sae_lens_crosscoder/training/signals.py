"""Stopping between two steps when the system asks for it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from sae_lens_crosscoder.training.trainer import CrosscoderTrainer

AT_ONCE_AFTER_SECONDS = 2.0
"""How long after the first request a second one means it: launchers such as `torchrun` pass a signal on that the system
has sent to their processes as well."""


@contextmanager
def stops_on_signal(trainer: CrosscoderTrainer) -> Generator[None]:
    """Ask the trainer to stop after its current step when SIGINT or SIGTERM comes, instead of breaking the step.

    One that this process was started to ignore, as a shell's background jobs ignore Ctrl-C, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals can only be handled in the main thread
        return

    requested: list[float] = []

    def request_stop(number: int, _frame: FrameType | None) -> None:
        requested.append(time.monotonic())
        if requested[-1] - requested[0] > AT_ONCE_AFTER_SECONDS:  # asked again: stop at once, without saving
            signal.signal(number, previous[signal.Signals(number)])
            signal.raise_signal(number)
        trainer.stop_requested = True

    # A handler that is None was set from outside Python, which cannot put it back.
    heard = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    previous = {number: signal.signal(number, request_stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
