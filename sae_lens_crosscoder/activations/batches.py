"""The training batches of a store, with or without a thread that harvests while the trainer trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.activations.harvest_thread import HarvestThread
from sae_lens_crosscoder.activations.store import PairedActivationsStore


class TrainingBatches(Iterator[Tensor]):
    """Iterator over a store's batches, the same ones with and without the thread.

    The thread only fills the store's buffer; batches are taken from it when they are asked for. So the store's state is
    always that of the batches that training has seen.

    Args:
        store: Where the batches come from. Load its checkpoint before: harvesting begins at once.
        in_background: Whether a thread harvests while the batches are used.
    """

    def __init__(self, store: PairedActivationsStore, in_background: bool = False) -> None:
        self.store = store
        self._thread = HarvestThread(store) if in_background else None

    def __next__(self) -> Float[Tensor, "batch d_in"]:
        if self._thread is None:
            return next(self.store)
        self._thread.wait_until_ready()
        batch = next(self.store)
        self._thread.rows_were_served()
        return batch

    def paused(self) -> AbstractContextManager[None]:
        """Keep the thread from touching the store and the models inside the `with` block, in which nothing is taken."""
        return self._thread.paused() if self._thread is not None else nullcontext()

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.close()
