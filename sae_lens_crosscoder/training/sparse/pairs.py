"""Active pairs of a row and a latent, in compressed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class LatentOrder:
    """The same pairs ordered by latent, then row."""

    order: Int[Tensor, " n_pairs"]
    """Where each of them stands in the order by row."""

    rows: Int[Tensor, " n_pairs"]
    """Row of every pair."""

    latents: Int[Tensor, " n_pairs"]
    """Latent of every pair, never falling."""

    starts: Int[Tensor, " n_latents"]
    """Position of the first pair of every latent."""


@dataclass(frozen=True)
class ActivePairs:
    """Which latents are active on which rows, ordered by row, then latent."""

    flat: Int[Tensor, " n_pairs"]
    """row * n_latents + latent of every pair, rising."""

    n_rows: int
    """Rows: tokens of the batch, or tokens times prefixes."""

    n_latents: int
    """Latents."""

    @cached_property
    def rows(self) -> Int[Tensor, " n_pairs"]:
        """Row of every pair, never falling."""
        return self.flat // self.n_latents

    @cached_property
    def latents(self) -> Int[Tensor, " n_pairs"]:
        """Latent of every pair."""
        return self.flat - self.rows * self.n_latents

    @cached_property
    def row_starts(self) -> Int[Tensor, " n_rows"]:
        """Position of the first pair of every row."""
        return _starts(self.rows, self.n_rows)

    @cached_property
    def by_latent(self) -> LatentOrder:
        """The pairs ordered by latent."""
        latents, order = self.latents.sort(stable=True)
        return LatentOrder(order, self.rows[order], latents, _starts(latents, self.n_latents))

    def codes(self, values: Float[Tensor, " n_pairs"]) -> Float[Tensor, "n_rows n_latents"]:
        """The codes that have these values at the pairs and are 0 elsewhere, as a sparse COO tensor."""
        indices = torch.stack([self.rows, self.latents])
        shape = (self.n_rows, self.n_latents)
        return torch.sparse_coo_tensor(indices, values, shape, is_coalesced=True, check_invariants=False)


def blocks_of(latents: Int[Tensor, " n"], ends: Sequence[int]) -> Int[Tensor, " n"]:
    """Number of the block that each latent lies in; block b ends before latent `ends[b]`, and the last holds the rest.

    Compared to the numbers one by one: a tensor of them would have to be copied to the device.
    """
    blocks = torch.zeros_like(latents)
    for end in ends[:-1]:
        blocks += latents >= end
    return blocks


def _starts(groups: Int[Tensor, " n"], n_groups: int) -> Int[Tensor, " n_groups"]:
    """Position of the first member of every group; groups never fall. Counting them would make CUDA wait."""
    return torch.searchsorted(groups, torch.arange(n_groups, device=groups.device))
