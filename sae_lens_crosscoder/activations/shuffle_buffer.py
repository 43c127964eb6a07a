"""A preallocated pool of activations that serves shuffled batches: one write a token in, one gather a batch out."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.streams import Handover, on_device
from sae_lens_crosscoder.errors import ConfigError

_PIECE = 1 << 16


def n_pool_rows(n_tokens: int, n_further_tokens: int, batch_size: int, mix_fraction: float) -> int:
    """Rows of the memory that a `ShuffleBuffer` takes.

    Args:
        n_tokens: How many rows must be held before batches are served.
        n_further_tokens: Rows that there is room for beside those: of one pass, and of those that run ahead.
        batch_size: Rows of a batch.
        mix_fraction: Share of `n_tokens` that is kept for the next permutation.
    """
    # Rows that stay when no further batch can be served: usually fewer than n_tokens, more for a high mix_fraction.
    n_left = int(n_tokens * mix_fraction) + batch_size - 1
    return max(n_tokens, n_left) + n_further_tokens


class ShuffleBuffer:
    """Serves batches from a pool that is refilled when it runs low.

    The order of rows is exactly that of SAELens's `mixing_buffer`: rows are added until `n_tokens` are held, all are
    permuted, batches are served until `mix_fraction` of `n_tokens` is left, and rows are added again. SAELens
    concatenates and permutes the activations themselves, three copies of the buffer; here rows stay where they were
    written and only their *order*, a list of row numbers, is permuted.

    One thread may add rows while another takes batches: rows that come early wait, without part in the permutation,
    until it is their turn, so the batches are the same whenever rows come. They take the places that served rows leave.

    Args:
        n_tokens: How many rows must be held before batches are served.
        n_added_tokens: The most rows that are added at once. The pool has room for them beside those that are held.
        d_in: Width of a row.
        batch_size: Rows of a batch.
        mix_fraction: Share of `n_tokens` that is kept for the next permutation; 0 serves rows in order, unshuffled.
        generator: Source of the permutations.
        n_ahead_tokens: Further room, so that rows can be added before as many were served.

    Raises:
        ConfigError: A batch that is larger than the buffer, or a `mix_fraction` outside [0, 1].
    """

    def __init__(  # noqa: PLR0913 - a buffer has that many independent sizes
        self,
        n_tokens: int,
        n_added_tokens: int,
        d_in: int,
        batch_size: int,
        mix_fraction: float = 0.5,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
        n_ahead_tokens: int = 0,
    ) -> None:
        if n_tokens < batch_size:
            raise ConfigError(
                f"The activation buffer holds {n_tokens} tokens but a training batch has {batch_size}. Raise "
                "n_batches_in_buffer (the buffer holds n_batches_in_buffer * context_size tokens) or lower "
                "train_batch_size_tokens."
            )
        if not 0 <= mix_fraction <= 1:
            raise ConfigError(f"activations_mixing_fraction={mix_fraction} must lie between 0 and 1.")
        self.n_tokens = n_tokens
        self.n_added_tokens = n_added_tokens
        self.batch_size = batch_size
        self.mix_fraction = mix_fraction
        self.generator = generator
        capacity = n_pool_rows(n_tokens, n_added_tokens + n_ahead_tokens, batch_size, mix_fraction)
        self.pool = torch.empty(capacity, d_in, dtype=dtype, device=device)
        self.order: Int[Tensor, " n_held"] = torch.empty(0, dtype=torch.long)
        """Rows in the order in which they are served."""
        self.added: deque[Int[Tensor, " n_rows"]] = deque()
        """Rows that wait for the next permutation, those of each `add` together."""
        self.free: Int[Tensor, " n_free"] = torch.arange(capacity)
        self.n_batches_ready = 0
        self._rows_lock = threading.Lock()
        self._written, self._served = Handover(self.pool.device), Handover(self.pool.device)

    @property
    def has_room(self) -> bool:
        """Whether `n_added_tokens` more rows can be added."""
        return len(self.free) >= self.n_added_tokens

    @property
    def is_ready(self) -> bool:
        """Whether a batch can be served."""
        with self._rows_lock:
            n_held = len(self.order) + sum(map(len, self.added))
            return self.n_batches_ready > 0 or (len(self.added) > 0 and n_held >= self.n_tokens)

    def add(self, parts: Sequence[Float[Tensor, "n_rows _d_part"]]) -> None:
        """Write rows that are given as their parts side by side, converting them to the buffer's dtype.

        Raises:
            ConfigError: More rows than there is room for.
        """
        n_rows = parts[0].shape[0]
        with self._rows_lock:
            if n_rows > len(self.free):
                raise ConfigError(
                    f"{n_rows} rows were added to an activation buffer with room for {len(self.free)}: a forward pass "
                    "gave more tokens than store_batch_size_prompts * context_size."
                )
            rows, self.free = self.free[:n_rows], self.free[n_rows:]
        if n_rows > 0:
            self._served.wait()
            self._write(rows, parts)
            self._written.record()
        with self._rows_lock:
            self.added.append(rows)

    def _write(self, rows: Int[Tensor, " n_rows"], parts: Sequence[Float[Tensor, "n_rows _d_part"]]) -> None:
        # Free rows are sorted. Until the first batches are served they are one run: then a plain copy is fastest.
        first = int(rows[0])
        contiguous = int(rows[-1]) - first == len(rows) - 1
        device_rows = None if contiguous else rows.to(self.pool.device)
        start = 0
        for part in parts:
            columns = self.pool[:, start : start + part.shape[-1]]
            here = on_device(part, self.pool.device)
            if device_rows is None:
                columns[first : first + len(rows)].copy_(here)
            else:
                columns.index_copy_(0, device_rows, here.to(self.pool.dtype))
            start += part.shape[-1]

    def next_batch(self, dtype: torch.dtype) -> Float[Tensor, "batch d_in"]:
        """Take the next batch out of the buffer, as a copy in `dtype`. Ask only if it `is_ready`."""
        with self._rows_lock:
            if self.n_batches_ready == 0:
                self._shuffle()
            rows = self.order[: self.batch_size]
        self._written.wait()
        batch = self.pool.index_select(0, rows.to(self.pool.device)).to(dtype)
        self._served.record()
        with self._rows_lock:
            # Only now: a batch that there was no memory for is the next one.
            self.order = self.order[self.batch_size :]
            self.n_batches_ready -= 1
            # Sorted, so that later writes run forward through memory.
            self.free = torch.cat([self.free, rows]).sort().values
        return batch

    def _shuffle(self) -> None:
        """Take in as many of the rows that wait as fill the buffer, and permute all."""
        taken, n_held = [self.order], len(self.order)
        while len(taken) == 1 or n_held < self.n_tokens:
            taken.append(self.added.popleft())
            n_held += len(taken[-1])
        self.order = torch.cat(taken)
        if self.mix_fraction > 0:
            self.order = self.order[torch.randperm(n_held, generator=self.generator)]
        n_to_serve = n_held - int(self.n_tokens * self.mix_fraction)
        self.n_batches_ready = max(1, n_to_serve // self.batch_size)

    def state_dict(self) -> dict[str, Tensor]:
        """The pool itself (not a copy) and the order of its rows. Ask while no other thread adds rows."""
        return {
            "buffer_pool": self.pool,
            "buffer_order": self.order,
            "buffer_added": torch.cat([self.order[:0], *self.added]),
            "buffer_n_added": torch.tensor([len(rows) for rows in self.added], dtype=torch.long),
            "buffer_n_batches_ready": torch.tensor(self.n_batches_ready),
            "buffer_n_tokens": torch.tensor(self.n_tokens),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave; rows may be added in passes of another size, and further ahead.

        Raises:
            ConfigError: The state is that of a buffer of another size, width or dtype.
        """
        pool, n_tokens = state["buffer_pool"], int(state["buffer_n_tokens"])
        rows = torch.cat([state["buffer_order"], state["buffer_added"]])
        if (n_tokens, pool.shape[1], pool.dtype) != (self.n_tokens, self.pool.shape[1], self.pool.dtype):
            raise ConfigError(
                f"The checkpoint's activation buffer holds {n_tokens} tokens {pool.shape[1]} wide in {pool.dtype}, "
                f"this run's {self.n_tokens} tokens {self.pool.shape[1]} wide in {self.pool.dtype}. Resume with the "
                "checkpoint's n_batches_in_buffer, context_size, buffer_dtype and sources."
            )
        if len(rows) > len(self.pool):  # it was saved by a run that harvests further ahead
            self.pool = self.pool.new_empty(len(rows), pool.shape[1])
        # Piece by piece: the state may be a file that is mapped to memory.
        for start in range(0, len(rows), _PIECE):
            piece = rows[start : start + _PIECE]
            self.pool[start : start + len(piece)] = pool[piece].to(self.pool.device)
        lengths = [len(state["buffer_order"]), *state["buffer_n_added"].tolist()]
        self.order, *added = torch.arange(len(rows)).split(lengths)
        self.added = deque(added)
        self.free = torch.arange(len(rows), len(self.pool))
        self.n_batches_ready = int(state["buffer_n_batches_ready"])
