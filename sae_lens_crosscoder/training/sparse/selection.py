"""The pairs that stay: the k * batch largest scores of a batch, or the k largest of every token."""

from __future__ import annotations

import math
from typing import TypeAlias

import torch
from torch import Tensor

from sae_lens_crosscoder.training.parallel.division import Division
from sae_lens_crosscoder.training.sparse import chunk_selection
from sae_lens_crosscoder.training.sparse.chunk_encoder import ChunkEncoder
from sae_lens_crosscoder.training.sparse.encoder import PairEncoder, ScoredPairs
from sae_lens_crosscoder.training.sparse.ties import largest

AnyEncoder: TypeAlias = PairEncoder | ChunkEncoder
"""What scores a batch: candidates above a bound, or, where nothing may be read back from the device, all pairs."""

_POOL = 4  # a pool of candidates beyond this multiple of what stays is cut
_SLACKS = (1.1, 2.0)  # candidates aimed at, by those that stay


class LargestOfBatch:
    """Selects the n largest scores of a batch, starting from the last batch's bound.

    Only candidates above a bound are scored. A pool that grows too large is cut to its n largest: as there are n
    scores at least as large as the smallest of them, that one is a bound for all further rows. If fewer than n scores
    reach the bound that was started from, the batch is gone through again with a lower one, and at last with none: the
    selection is exact wherever it starts from, and only its time depends on it.
    """

    def __init__(self) -> None:
        self.start = 0.0
        """Score that the next selection starts from."""
        self._slack = 1.25

    def select(self, encoder: AnyEncoder, latents: slice, n: int) -> ScoredPairs:
        """The n pairs with the largest positive scores, in the order of rows.

        If fewer are positive, there are fewer pairs or, from a `ChunkEncoder`, some of score 0.

        Args:
            encoder: Scores the pairs of the batch.
            latents: The latents that are selected among.
            n: Pairs that stay.
        """
        if isinstance(encoder, ChunkEncoder):
            return chunk_selection.largest_of_batch(encoder, latents, n)
        if n < 1:
            return _scored(encoder, [])
        for start in (self.start, 0.7 * self.start, 0.0):
            pool, bound = self._above(encoder, latents, n, start)
            n_reached = int((pool.scores >= bound).sum())
            if n_reached >= n or start == 0:
                break
            self._slack = min(1.2 * self._slack, _SLACKS[1])
        kept = pool.where(largest(pool.scores, n))
        self._aim(kept, n, n_reached, bound)
        return kept

    def _above(self, encoder: PairEncoder, latents: slice, n: int, start: float) -> tuple[ScoredPairs, float]:
        """Pairs among which are all that stay, if n scores reach the bound that is returned."""
        pool = _Pool(encoder, n, start)
        for rows in encoder.chunks:
            pool.add(*encoder.candidates(encoder.screen(rows, latents), rows, latents, pool.bound))
        return pool.scored(), pool.bound

    def _aim(self, kept: ScoredPairs, n: int, n_reached: int, bound: float) -> None:
        """Set the start so that the next batch, if it is like this one, gives a little more than n candidates."""
        if len(kept) < n:
            self.start = 0.0
            return
        smallest = kept.scores.min().item()
        surplus = math.log(n_reached / n)
        # Scores fall about linearly with the logarithm of their rank.
        slope = (smallest - bound) / surplus if surplus > 0.01 else 0.5 * smallest
        self.start = max(0.0, smallest - slope * math.log(self._slack))
        self._slack = max(0.99 * self._slack, _SLACKS[0])


class _Pool:
    """Candidates in the order of rows, cut to the n largest whenever there are too many."""

    def __init__(self, encoder: PairEncoder, n: int, bound: float) -> None:
        self.bound = bound
        self._encoder, self._n = encoder, n
        self._scored: ScoredPairs | None = None
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, flat: Tensor, bounds: Tensor) -> None:
        self._waiting.append((flat, bounds))
        n_pairs = sum(len(flat) for flat, _ in self._waiting) + (0 if self._scored is None else len(self._scored))
        if n_pairs > _POOL * self._n:
            pairs = self.scored()
            self._scored = pairs.where(largest(pairs.scores, self._n))
            if len(self._scored) == self._n:
                self.bound = max(self.bound, self._scored.scores.min().item())

    def scored(self) -> ScoredPairs:
        new = _scored(self._encoder, self._waiting)
        self._waiting = []
        self._scored = new if self._scored is None else self._scored.joined(new)
        return self._scored


def largest_of_rows(encoder: AnyEncoder, k: int) -> ScoredPairs:
    """The k pairs of every row with the largest positive scores, in the order of rows.

    If fewer are positive, there are fewer pairs or, from a `ChunkEncoder`, some of score 0.

    The k-th largest of the maxima of groups of latents is reached by at least k bounds; a score lies below its bound by
    no more than the encoder's slack. What that leaves is reached by at least k scores of the row.
    """
    if isinstance(encoder, ChunkEncoder):
        return chunk_selection.largest_of_rows(encoder, k)
    latents = slice(0, encoder.d_sae)
    n_grouped = max(1, encoder.d_sae // (4 * k))
    found: list[tuple[Tensor, Tensor]] = []
    for rows in encoder.chunks:
        bounds = encoder.screen(rows, latents)
        groups = bounds[:, : encoder.d_sae // n_grouped * n_grouped].reshape(len(bounds), n_grouped, -1).amax(dim=1)
        kth = groups.float().topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
        found.append(encoder.candidates(bounds, rows, latents, encoder.least_scores(kth, rows)))
    scored = _scored(encoder, found)
    return scored.where(_largest_of_each(scored, encoder, k))


def largest_of_ranks(found: ScoredPairs, encoder: AnyEncoder, division: Division, k: int) -> ScoredPairs:
    """The pairs that are among the k largest of their row on all ranks, out of the k largest on this one."""
    rows = found.flat // encoder.d_sae
    counts = torch.bincount(rows, minlength=encoder.n_rows)
    column = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    scores = found.scores.new_zeros(encoder.n_rows, k)
    scores[rows, column] = found.scores
    return found.where(division.largest_of_rows(scores, k)[rows, column])


def positive_pairs(encoder: AnyEncoder, max_share: float) -> ScoredPairs | None:
    """All pairs with a positive score, in the order of rows; None if they are more than a share of all pairs.

    The first chunk mostly says so, so that a dense batch costs little here.
    """
    if isinstance(encoder, ChunkEncoder):
        return chunk_selection.positive_pairs(encoder, max_share)
    latents = slice(0, encoder.d_sae)
    found: list[tuple[Tensor, Tensor]] = []
    n_found = 0
    for rows in encoder.chunks:
        found.append(encoder.candidates(encoder.screen(rows, latents), rows, latents, 0.0))
        n_found += len(found[-1][0])
        if n_found > 2 * max_share * rows.stop * encoder.d_sae:  # twice: candidates are more than what is positive
            return None
    scored = _scored(encoder, found)
    scored = scored.where(scored.scores > 0)
    return scored if len(scored) <= max_share * encoder.n_rows * encoder.d_sae else None


def _scored(encoder: PairEncoder, found: list[tuple[Tensor, Tensor]]) -> ScoredPairs:
    flat = [flat for flat, _ in found]
    bounds = [bounds for _, bounds in found]
    if not found:
        return encoder.score(encoder.x.new_empty(0, dtype=torch.long), encoder.x.new_empty(0))
    return encoder.score(torch.cat(flat), torch.cat(bounds))


def _largest_of_each(scored: ScoredPairs, encoder: PairEncoder, k: int) -> Tensor:
    """Which pairs are among the k largest of their row; of equal ones the first stay."""
    rows = scored.flat // encoder.d_sae
    by_score = scored.scores.sort(descending=True, stable=True).indices
    grouped, order = rows[by_score].sort(stable=True)
    counts = torch.bincount(rows, minlength=encoder.n_rows)
    rank = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[grouped]
    kept = torch.empty_like(rows, dtype=torch.bool)
    kept[by_score[order]] = rank < k
    return kept & (scored.scores > 0)
