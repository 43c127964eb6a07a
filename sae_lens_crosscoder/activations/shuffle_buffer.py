"""A preallocated pool of activations that serves shuffled batches: one write a token in, one gather a batch out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.errors import ConfigError


class ShuffleBuffer:
    """Serves batches from a pool that is refilled when it runs low.

    The order of rows is exactly that of SAELens's `mixing_buffer`: rows are added until `n_tokens` are held, all are
    permuted, batches are served until `mix_fraction` of `n_tokens` is left, and rows are added again. SAELens
    concatenates and permutes the activations themselves, three copies of the buffer; here rows stay where they were
    written and only their *order*, a list of row numbers, is permuted.

    Args:
        n_tokens: How many rows must be held before batches are served.
        n_added_tokens: The most rows that are added at once. The pool has room for them beside those that are held.
        d_in: Width of a row.
        batch_size: Rows of a batch.
        mix_fraction: Share of `n_tokens` that is kept for the next permutation; 0 serves rows in order, unshuffled.
        generator: Source of the permutations.

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
        self.batch_size = batch_size
        self.mix_fraction = mix_fraction
        self.generator = generator
        # Rows that stay when no further batch can be served: usually fewer than n_tokens, more for a high mix_fraction.
        n_left = int(n_tokens * mix_fraction) + batch_size - 1
        capacity = max(n_tokens, n_left) + n_added_tokens
        self.pool = torch.empty(capacity, d_in, dtype=dtype, device=device)
        self.order: Int[Tensor, " n_held"] = torch.empty(0, dtype=torch.long)
        self.free: Int[Tensor, " n_free"] = torch.arange(capacity)
        self.n_batches_ready = 0

    @property
    def is_filled(self) -> bool:
        """Whether enough rows are held to permute them and serve batches."""
        return len(self.order) >= self.n_tokens

    def add(self, parts: Sequence[Float[Tensor, "n_rows _d_part"]]) -> None:
        """Write rows that are given as their parts side by side, converting them to the buffer's dtype.

        Raises:
            ConfigError: More rows than `n_added_tokens` at once.
        """
        n_rows = parts[0].shape[0]
        if n_rows > len(self.free):
            raise ConfigError(
                f"{n_rows} rows were added to an activation buffer with room for {len(self.free)}: a forward pass gave "
                "more tokens than store_batch_size_prompts * context_size."
            )
        if n_rows == 0:
            return
        rows, self.free = self.free[:n_rows], self.free[n_rows:]
        # Free rows are sorted. Until the first batches are served they are one run: then a plain copy is fastest.
        contiguous = int(rows[-1] - rows[0]) == n_rows - 1
        device_rows = None if contiguous else rows.to(self.pool.device)
        start = 0
        for part in parts:
            columns = self.pool[:, start : start + part.shape[-1]]
            if device_rows is None:
                columns[int(rows[0]) : int(rows[0]) + n_rows].copy_(part)
            else:
                columns.index_copy_(0, device_rows, part.to(device=self.pool.device, dtype=self.pool.dtype))
            start += part.shape[-1]
        self.order = torch.cat([self.order, rows])

    def shuffle(self) -> None:
        """Permute all rows and set aside those that the next batches are served from."""
        if self.mix_fraction > 0:
            permutation = torch.randperm(len(self.order), generator=self.generator)
            self.order = self.order[permutation]
        n_to_serve = len(self.order) - int(self.n_tokens * self.mix_fraction)
        self.n_batches_ready = max(1, n_to_serve // self.batch_size)

    def next_batch(self, dtype: torch.dtype) -> Float[Tensor, "batch d_in"]:
        """Take the next batch out of the buffer, as a copy in `dtype`."""
        rows, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        batch = self.pool.index_select(0, rows.to(self.pool.device)).to(dtype)
        # Sorted, so that later writes run forward through memory.
        self.free = torch.cat([self.free, rows]).sort().values
        self.n_batches_ready -= 1
        return batch

    def state_dict(self) -> dict[str, Tensor]:
        """The pool itself (not a copy) and the order of its rows."""
        return {
            "buffer_pool": self.pool,
            "buffer_order": self.order,
            "buffer_n_batches_ready": torch.tensor(self.n_batches_ready),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ConfigError: The state is that of a buffer of another size, width or dtype.
        """
        pool = state["buffer_pool"]
        if pool.shape != self.pool.shape or pool.dtype != self.pool.dtype:
            raise ConfigError(
                f"The checkpoint's activation buffer is {tuple(pool.shape)} {pool.dtype}, this run's is "
                f"{tuple(self.pool.shape)} {self.pool.dtype}. Resume with the checkpoint's n_batches_in_buffer, "
                "context_size, store_batch_size_prompts, buffer_dtype and sources."
            )
        self.pool.copy_(pool)
        self.order = state["buffer_order"].clone()
        held = torch.zeros(len(self.pool), dtype=torch.bool)
        held[self.order] = True
        self.free = (~held).nonzero().flatten()
        self.n_batches_ready = int(state["buffer_n_batches_ready"])
