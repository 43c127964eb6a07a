"""The training batches of a store, with or without a thread that harvests while the trainer trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.activations.harvest_thread import HarvestThread
from sae_lens_crosscoder.activations.store import PairedActivationsStore
from sae_lens_crosscoder.ranks import Ranks


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


class ShardedBatches(Iterator[Tensor]):
    """Batches to which every shard of the data gives an equal part, in the order of shards.

    Each rank has equally many shards, so the batches depend on the number of shards alone, not on that of the ranks.

    Args:
        shards: The batches of this rank's shards.
        ranks: All ranks.
        gathers: Whether to give whole batches, or this rank's part of them.
    """

    def __init__(self, shards: Sequence[TrainingBatches], ranks: Ranks, gathers: bool) -> None:
        self._shards, self._ranks, self._gathers = shards, ranks, gathers

    def __next__(self) -> Float[Tensor, "batch d_in"]:
        parts: list[Tensor] = []
        try:
            for shard in self._shards:
                parts.append(next(shard))
            here = parts[0] if len(parts) == 1 else torch.cat(parts)
        except BaseException:
            # Where one shard fails, nothing was given: the others' parts are those of the next batch.
            for shard, part in zip(self._shards, parts, strict=False):
                shard.store.put_back(part)
            raise
        return torch.cat(self._ranks.gather(here)) if self._gathers and self._ranks.is_several else here

    def whole(self) -> ShardedBatches:
        """The same stream of batches, each of them whole."""
        return ShardedBatches(self._shards, self._ranks, gathers=True)

    def put_back(self, batch: Float[Tensor, "batch d_in"]) -> None:
        """Take back the whole batch that was given last: it is the next one."""
        for shard, part in zip(self._shards, batch.chunk(len(self._shards)), strict=True):
            shard.store.put_back(part)

    def paused(self) -> ExitStack:
        """Keep all threads from the stores and the models inside the `with` block, in which nothing is taken."""
        stack = ExitStack()
        for shard in self._shards:
            stack.enter_context(shard.paused())
        return stack

    def close(self) -> None:
        """End all threads."""
        for shard in self._shards:
            shard.close()
