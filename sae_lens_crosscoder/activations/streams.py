"""Work beside the training: on CUDA a stream of its own and pinned memory; on other devices nothing is needed."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor


class Handover:
    """Orders the work of two threads on memory that they share: who waits, waits for all that was recorded before.

    On CUDA an event between the threads' streams, without holding up either thread; elsewhere work is done when its
    call returns, so there is nothing to order.

    Args:
        device: Where the memory is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event = torch.cuda.Event() if device.type == "cuda" else None

    def record(self) -> None:
        """Mark the end of what this thread's stream has been given to do."""
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        """Let this thread's stream do nothing more before what was recorded is done."""
        if self._event is not None:
            self._event.wait(torch.cuda.current_stream(self._device))


@contextmanager
def side_stream(device: torch.device) -> Generator[None]:
    """Run what this thread does on CUDA on a stream of its own, after all that the default stream has begun."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.default_stream(device))
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; what comes from the host goes through pinned memory, and the host does not wait."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
