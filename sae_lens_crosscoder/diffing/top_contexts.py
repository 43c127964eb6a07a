"""Where each latent fires most strongly, over a stream of any length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.diffing.sae_pass import CodedBatch
from sae_lens_crosscoder.errors import ConfigError, DataError


@dataclass(frozen=True)
class ContextTable:
    """The strongest places of every latent, strongest first; after the last place NaN and -1."""

    values: Float[Tensor, "d_sae k"]
    """Activation at the place."""

    sequence_ids: Int[Tensor, "d_sae k"]
    """The sequence it is in."""

    positions: Int[Tensor, "d_sae k"]
    """The token's position in that sequence."""


@dataclass(frozen=True)
class _Places:
    """Some places of some latents, in no order."""

    latents: Int[Tensor, " n"]
    values: Float[Tensor, " n"]
    sequence_ids: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]

    def select(self, which: Tensor) -> _Places:
        """These places only: a mask or an order."""
        return _Places(self.latents[which], self.values[which], self.sequence_ids[which], self.positions[which])

    def join(self, other: _Places) -> _Places:
        return _Places(
            torch.cat([self.latents, other.latents]),
            torch.cat([self.values, other.values]),
            torch.cat([self.sequence_ids, other.sequence_ids]),
            torch.cat([self.positions, other.positions]),
        )

    def sort_by(self, *keys: str) -> _Places:
        """In the order of the first key, and where it is equal of the second, and so on; values from the largest."""
        places = self
        for key in reversed(keys):
            places = places.select(getattr(places, key).sort(stable=True, descending=key == "values").indices)
        return places


class TopContexts:
    """Accumulator (`run_pass`) of the k places where each latent fires most strongly, exact over the whole stream.

    Where activations are equal, the lower sequence id and then the lower position comes first, so the result does not
    depend on how the stream is cut into batches or in which order they come. Batches are `TokenBatch`es with sequence
    ids and positions; the contexts are cut from the caller's tokens. Memory is `24 k` bytes a latent.

    Args:
        k: Places kept for each latent.
        per_sequence: Places of one latent that may come from one sequence.

    Raises:
        ConfigError: Numbers below 1.
    """

    def __init__(self, k: int = 20, per_sequence: int = 1) -> None:
        if k < 1 or per_sequence < 1:
            raise ConfigError(f"Contexts need k and per_sequence of at least 1, not {k} and {per_sequence}.")
        self.k = k
        self.per_sequence = per_sequence
        self._table: ContextTable | None = None

    def add(self, batch: CodedBatch) -> None:
        """Take in one batch.

        Raises:
            DataError: A batch without sequence ids and positions.
        """
        tokens, active = batch.tokens, batch.active
        if tokens.sequence_ids is None or tokens.positions is None:
            raise DataError(
                "A batch does not say where its tokens stand, so no context could be found again: pass TokenBatch(x, "
                "sequence_ids=..., positions=...)."
            )
        if self._table is None:
            self._table = _empty_table(active.d_sae, self.k, active.values)
        # All that is weaker than the weakest kept place is left out here, so that a late batch costs next to nothing.
        stays = active.values >= self._table.values[:, -1].nan_to_num(0)[active.latents]
        rows = active.rows[stays]
        self._insert(
            _Places(
                active.latents[stays],
                active.values[stays],
                tokens.sequence_ids[rows].long(),
                tokens.positions[rows].long(),
            )
        )

    def merge(self, other: TopContexts) -> None:
        """Add the places that another accumulator has found in other tokens.

        Raises:
            ConfigError: It keeps another number of places, or those of another SAE's latents.
        """
        theirs = other._table
        if theirs is None:
            return
        if self._table is None:
            self._table = _empty_table(len(theirs.values), self.k, theirs.values)
        limits = (self.k, self.per_sequence, len(self._table.values))
        if limits != (other.k, other.per_sequence, len(theirs.values)):
            raise ConfigError(
                "The two accumulators differ in k, per_sequence or the number of latents: merge only parts of one "
                "stream."
            )
        self._insert(_kept_places(theirs, torch.arange(len(theirs.values), device=theirs.values.device)))

    def state_dict(self) -> dict[str, Tensor]:
        """The places so far, for `load_state_dict` of another process; empty before the first batch."""
        return {} if self._table is None else dict(vars(self._table))

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Go on from the places of `state_dict`, which kept as many."""
        tensors = {name: tensor.to(device, copy=True) for name, tensor in state.items()}
        self._table = ContextTable(**tensors) if tensors else None

    def compute(self) -> ContextTable:
        """The places over all tokens that were added.

        Raises:
            DataError: There were none.
        """
        if self._table is None:
            raise DataError("No tokens were added, so latents have no contexts: the stream of batches was empty.")
        table = self._table
        return ContextTable(table.values.clone(), table.sequence_ids.clone(), table.positions.clone())

    def _insert(self, new: _Places) -> None:
        """Put new places among those that are kept."""
        if self._table is None or len(new.latents) == 0:
            return
        table = self._table
        places = new.join(_kept_places(table, torch.unique(new.latents)))
        places = places.sort_by("latents", "sequence_ids", "values", "positions")
        places = places.select(_rank_in_run(places.latents, places.sequence_ids) < self.per_sequence)
        # Sorting is stable: where values are equal, places stay in the order of sequences and positions.
        places = places.sort_by("latents", "values")
        rank = _rank_in_run(places.latents)
        places, rank = places.select(rank < self.k), rank[rank < self.k]
        # No latent ever has fewer places than before, so what is written here covers all that was.
        table.values[places.latents, rank] = places.values
        table.sequence_ids[places.latents, rank] = places.sequence_ids
        table.positions[places.latents, rank] = places.positions


def _empty_table(d_sae: int, k: int, like: Tensor) -> ContextTable:
    numbers = torch.full((d_sae, k), -1, dtype=torch.long, device=like.device)
    return ContextTable(torch.full_like(numbers, torch.nan, dtype=like.dtype), numbers, numbers.clone())


def _kept_places(table: ContextTable, latents: Tensor) -> _Places:
    """The places that a table has for these latents."""
    values, sequence_ids, positions = table.values[latents], table.sequence_ids[latents], table.positions[latents]
    rows, columns = (~values.isnan()).nonzero(as_tuple=True)
    return _Places(latents[rows], values[rows, columns], sequence_ids[rows, columns], positions[rows, columns])


def _rank_in_run(*keys: Tensor) -> Int[Tensor, " n"]:
    """How many entries before each one, without a gap, have the same keys."""
    index = torch.arange(len(keys[0]), device=keys[0].device)
    begins = torch.zeros(len(index), dtype=torch.bool, device=index.device)
    begins[:1] = True
    for key in keys:
        begins[1:] |= key[1:] != key[:-1]
    return index - torch.where(begins, index, 0).cummax(dim=0).values
