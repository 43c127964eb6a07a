"""The training batches of a store, with or without a background thread that prepares them ahead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder._saelens import PrefetchingIterator
from sae_lens_crosscoder.activations.store import PairedActivationsStore


class TrainingBatches(Iterator[Tensor]):
    """Iterator over a store's batches that knows how many were consumed.

    A prefetcher takes batches from the store before training sees them; a checkpoint has to save those, or a resumed
    run would skip them.

    Args:
        store: Where the batches come from. Load its checkpoint before: prefetching begins at once.
        n_prefetched: Batches that a background thread prepares ahead; 0 prepares each when it is asked for.
    """

    def __init__(self, store: PairedActivationsStore, n_prefetched: int = 0) -> None:
        self.store = store
        self._n_consumed = store.n_batches_served
        self._prefetcher = PrefetchingIterator(iter(store), prefetch=n_prefetched) if n_prefetched else None

    def __next__(self) -> Float[Tensor, "batch d_in"]:
        batch = next(self._prefetcher if self._prefetcher is not None else self.store)
        self._n_consumed += 1
        return batch

    @property
    def n_unconsumed(self) -> int:
        """Batches that were taken from the store and not yet consumed. Read it while `paused`."""
        return self.store.n_batches_served - self._n_consumed

    def paused(self) -> AbstractContextManager[None]:
        """Keep the background thread from touching the store and the models inside the `with` block."""
        return self._prefetcher.paused() if self._prefetcher is not None else nullcontext()

    def close(self) -> None:
        """Stop the background thread."""
        if self._prefetcher is not None:
            self._prefetcher.close()
