"""Reading a cache: every epoch its sequences in another order, also while it is being written."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sae_lens_crosscoder.activations.disk_cache.description import CacheDescription
from sae_lens_crosscoder.activations.disk_cache.shards import CacheBlock, ShardEntry, check_shard, finished, read_block
from sae_lens_crosscoder.activations.stream_care import StreamCare
from sae_lens_crosscoder.errors import ConfigError, DamagedError, DataError, first_line

_POLL_SECONDS = 0.2


class CacheReader:
    """Reads a cache in blocks of sequences. Nothing is copied: activations are views of files mapped to memory.

    The first epoch has the sequences in the order of the text, waiting for shards that are still to be written. Every
    further epoch has the blocks in an order of its own. A shard is compared with its checksum before its first use.

    Args:
        folder: The cache.
        n_sequences_a_block: Sequences that are read at once.
        seed: Seed of the orders.
        patience_seconds: How long no writer may finish a shard while one is waited for.
        care: Who asks to stop, and whether damaged shards are left out; None ends at the first.

    Raises:
        NotFoundError: There is no cache.
        ConfigError: It is one of another kind.
    """

    def __init__(
        self,
        folder: str | Path,
        n_sequences_a_block: int,
        seed: int = 0,
        patience_seconds: float = 600,
        care: StreamCare | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.description = CacheDescription.load(self.folder)
        self.seed = seed
        self.patience_seconds = patience_seconds
        self._care = care or StreamCare()
        self._n_sequences_a_block = n_sequences_a_block
        self._fingerprint = self.description.fingerprint
        self._shards: dict[int, ShardEntry] = {}
        self._n_shards = self.description.n_shards
        self._is_whole: dict[int, bool] = {}
        self._blocks: list[tuple[int, slice]] = []
        self._n_shards_in_blocks = 0
        self._n_read = 0
        self._order: Int[Tensor, " n_blocks"] | None = None

    def begin_epoch(self, epoch: int) -> None:
        """Begin anew; epoch 0 is the order of the text."""
        self._n_read = 0
        self._order = None
        if epoch > 0:
            while self._add_shard():
                pass
            generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
            self._order = torch.randperm(len(self._blocks), generator=generator)

    def next_block(self) -> CacheBlock | None:
        """The next sequences; None at the end of the epoch.

        Raises:
            DamagedError: A shard is not what was written, and is not to be left out.
            DataError: Writers do not go on, or all shards are left out.
            WaitStopped: The run was asked to stop while the next shard was waited for.
        """
        while True:
            while self._n_read >= len(self._blocks):
                if not self._add_shard():
                    return None
            at = self._n_read if self._order is None else int(self._order[self._n_read])
            number, sequences = self._blocks[at]
            self._n_read += 1
            if self._is_readable(number):
                return read_block(self.folder, number, sequences)

    def _is_readable(self, number: int) -> bool:
        """Whether a shard is whole; one that is damaged raises, or is left out."""
        if number not in self._is_whole:
            shard = f"shard {number} of the cache {self.folder}"
            try:
                check_shard(self.folder, self._shards[number])
            except DamagedError as error:
                if not self._care.patience.skip_bad_shards:
                    raise
                self._care.skip(shard, first_line(error))
            self._is_whole[number] = shard not in self._care.skipped  # also one that a run left out before it resumed
        return self._is_whole[number]

    def state_dict(self) -> dict[str, Any]:
        """How far the epoch was read, as JSON."""
        return {"fingerprint": self._fingerprint, "n_blocks_read": self._n_read, "block": self._n_sequences_a_block}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was asked, in an epoch that has begun.

        Raises:
            ConfigError: The state is that of another cache, or of one that was read in other blocks.
        """
        wanted = (self._fingerprint, self._n_sequences_a_block)
        if (state["fingerprint"], state["block"]) != wanted:
            raise ConfigError(
                f"The checkpoint read another cache than {self.folder}, or with another store_batch_size_prompts "
                f"({state['block']}, now {self._n_sequences_a_block}). Resume with those of the checkpoint."
            )
        self._n_read = state["n_blocks_read"]

    def _add_shard(self) -> bool:
        """Wait for the next shard and take its blocks in; False if there is none."""
        number = self._n_shards_in_blocks
        if number not in self._shards:
            self._wait_for(number)
        if number >= self._n_shards:
            return False
        n_sequences, step = self._shards[number].n_sequences, self._n_sequences_a_block
        if not 0 < n_sequences <= self.description.n_sequences_a_shard:
            raise DataError(
                f"The manifests of {self.folder} give shard {number} {n_sequences} sequences, but a shard has 1 to "
                f"{self.description.n_sequences_a_shard}: a manifest was changed. Make the cache anew."
            )
        starts = range(0, n_sequences, step)
        self._blocks += [(number, slice(start, min(start + step, n_sequences))) for start in starts]
        self._n_shards_in_blocks += 1
        return True

    def _wait_for(self, number: int) -> None:
        """Return when the shard is finished or known not to come."""
        n_finished, changed = -1, time.monotonic()
        while True:
            found = finished(self.folder, self._fingerprint)
            self._shards = {entry.number: entry for entry in found.shards}
            if found.ended_at_sequence is not None:
                self._n_shards = -(-found.ended_at_sequence // self.description.n_sequences_a_shard)
            if number in self._shards or number >= self._n_shards:
                return
            if len(self._shards) != n_finished:
                n_finished, changed = len(self._shards), time.monotonic()
            waited = time.monotonic() - changed
            if waited > self.patience_seconds:
                raise DataError(
                    f"Shard {number} of the cache {self.folder} did not come: {n_finished} of {self._n_shards} are "
                    f"finished, and no writer has finished one for {waited:.0f} s. See that the writers run; those "
                    "that were stopped go on when they are called again."
                )
            self._care.wait(_POLL_SECONDS)
