"""How a training step is divided over ranks: not at all, by tokens ("replicated") or by latents ("sharded")."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder.ranks import Ranks, SumOfParts
from sae_lens_crosscoder.training.parallel.kth_largest import kth_largest
from sae_lens_crosscoder.training.parallel.latent_shard import LatentShard
from sae_lens_crosscoder.training.parallel.layouts import DictionaryLayout
from sae_lens_crosscoder.training.sparse.ties import largest


class Division:
    """A step that is not divided: this process holds all latents and sees all tokens of a batch.

    The architectures ask it wherever a number is about all latents or all tokens. Each question is asked by all ranks
    in the same order.
    """

    splits_latents = False
    """Whether each rank holds some of the latents."""
    splits_tokens = False
    """Whether each rank sees some of a batch's tokens."""

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()

    @property
    def is_divided(self) -> bool:
        """Whether other ranks take part in a step."""
        return self.splits_latents or self.splits_tokens

    def shard(self, d_sae: int) -> LatentShard:
        """The latents that this rank holds."""
        return LatentShard(0, d_sae)

    def sum_of_latents(self, part: Tensor) -> Tensor:
        """What is a sum over all latents, from this rank's summand, with gradient."""
        return part

    def n_tokens(self, n_here: int) -> int:
        """Tokens of the whole batch."""
        return n_here

    def sum_of_tokens(self, values: Tensor) -> Tensor:
        """What is a sum over all tokens of a batch, from this rank's summand, without gradient."""
        return values

    def least(self, values: Tensor) -> Tensor:
        """The smallest of all ranks' values."""
        return values

    def largest_of_batch(
        self, scores: Float[Tensor, " n"], rows: Int[Tensor, " n"], k: int, n_rows: int
    ) -> Bool[Tensor, " n"]:
        """Where the k largest scores of the whole batch stand, fewer if fewer are positive.

        Of equal scores the first ones stay, in the order of tokens and then latents.

        Args:
            scores: This rank's scores, in that order.
            rows: Their tokens, counted from 0 on this rank.
            k: How many stay.
            n_rows: Tokens on this rank.
        """
        return largest(scores, k)

    def largest_of_rows(self, scores: Float[Tensor, "n_rows n"], k: int) -> Bool[Tensor, "n_rows n"]:
        """Where the k largest scores of every token stand, fewer if fewer are positive; ties as above."""
        return largest(scores, k)

    def average_gradients(self, weights: list[torch.nn.Parameter]) -> None:
        """Make each gradient, which is that of the mean over this rank's tokens, that of the mean over all."""

    def gradient_norm(self, of_latents: list[Tensor], of_all: list[Tensor]) -> Tensor:
        """The norm of all gradients of all ranks together.

        Args:
            of_latents: Gradients of weights that belong to latents.
            of_all: Gradients of the other weights.
        """
        return torch.nn.utils.get_total_norm([*of_latents, *of_all])


class _Exact(Division, ABC):
    """The selection of the largest scores of a batch that lies on several ranks."""

    @override
    def least(self, values: Tensor) -> Tensor:
        return self.ranks.least(values)

    @override
    def largest_of_batch(
        self, scores: Float[Tensor, " n"], rows: Int[Tensor, " n"], k: int, n_rows: int
    ) -> Bool[Tensor, " n"]:
        kth = kth_largest(scores[None], k, self.ranks.sum).view(())
        kept, above = (scores >= kth) & (scores > 0), scores > kth
        n_kept, n_above = self.ranks.sum(torch.stack([kept.sum(), above.sum()])).tolist()
        if n_kept <= k:
            return kept
        ties = kept & ~above
        tied_rows = rows[ties]
        counts = torch.bincount(tied_rows, minlength=n_rows)
        before = self._ties_before(counts)[tied_rows]
        in_row = torch.arange(len(tied_rows), device=rows.device) - (counts.cumsum(0) - counts)[tied_rows]
        above[ties] = before + in_row < k - n_above
        return above

    @abstractmethod
    def _ties_before(self, counts: Int[Tensor, " n_rows"]) -> Int[Tensor, " n_rows"]:
        """Of every token of this rank how many tied scores stand before its own on this rank."""


class SplitTokens(_Exact):
    """Every rank holds all latents and computes on its own part of the batch; gradients are averaged."""

    splits_tokens = True

    @override
    def n_tokens(self, n_here: int) -> int:
        return n_here * self.ranks.n

    @override
    def sum_of_tokens(self, values: Tensor) -> Tensor:
        return self.ranks.sum(values)

    @override
    def average_gradients(self, weights: list[torch.nn.Parameter]) -> None:
        for weight in weights:
            if weight.grad is not None:
                # As it lies in memory: W_enc is stored latent by latent.
                stored = weight.grad.T if weight.grad.ndim == 2 and weight.grad.T.is_contiguous() else weight.grad
                stored.copy_(self.ranks.sum(stored) / self.ranks.n)

    @override
    def _ties_before(self, counts: Int[Tensor, " n_rows"]) -> Int[Tensor, " n_rows"]:
        totals = self.ranks.gather(counts.sum())
        return sum(totals[: self.ranks.rank], counts.new_zeros(())) + counts.cumsum(0) - counts


class SplitLatents(_Exact):
    """Every rank holds an equal share of the latents and sees the whole batch.

    Reconstructions, and what else is a sum over latents, are summed: B * d_in numbers a step, whatever the number of
    latents.
    """

    splits_latents = True

    @override
    def shard(self, d_sae: int) -> LatentShard:
        return LatentShard.of_rank(d_sae, self.ranks.rank, self.ranks.n)

    @override
    def sum_of_latents(self, part: Tensor) -> Tensor:
        return cast(Tensor, SumOfParts.apply(part, self.ranks))

    @override
    def largest_of_rows(self, scores: Float[Tensor, "n_rows n"], k: int) -> Bool[Tensor, "n_rows n"]:
        kth = kth_largest(scores, k, self.ranks.sum)
        kept, above = (scores >= kth) & (scores > 0), scores > kth
        n_kept, n_above = self.ranks.sum(torch.stack([kept.sum(dim=1), above.sum(dim=1)]))
        if bool((n_kept <= k).all()):
            return kept
        ties = kept & ~above
        counts = self.ranks.gather(ties.sum(dim=1))
        before = sum(counts[: self.ranks.rank], torch.zeros_like(n_above))
        place = before[:, None] + ties.cumsum(dim=1)
        return above | (ties & (place <= (k - n_above)[:, None]))

    @override
    def gradient_norm(self, of_latents: list[Tensor], of_all: list[Tensor]) -> Tensor:
        squared = torch.nn.utils.get_total_norm(of_latents).square()
        return (self.ranks.sum(squared) + torch.nn.utils.get_total_norm(of_all).square()).sqrt()

    @override
    def _ties_before(self, counts: Int[Tensor, " n_rows"]) -> Int[Tensor, " n_rows"]:
        of_ranks = torch.stack(self.ranks.gather(counts))
        of_rows = of_ranks.sum(dim=0)
        return of_rows.cumsum(0) - of_rows + of_ranks[: self.ranks.rank].sum(dim=0)


def division_for(layout: DictionaryLayout, ranks: Ranks) -> Division:
    """The division that a layout of the dictionary means for these ranks."""
    if not ranks.is_several:
        return Division(ranks)
    return SplitLatents(ranks) if layout == "sharded" else SplitTokens(ranks)
