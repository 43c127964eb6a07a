"""What the crosscoders with a sparsity penalty share: a smaller one for designated shared latents."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.training.crosscoder import TrainingCrosscoder, TrainingCrosscoderConfig
from sae_lens_crosscoder.training.sparse.pairs import ActivePairs


@dataclass(kw_only=True)
class PenalisedTrainingCrosscoderConfig(TrainingCrosscoderConfig, ABC):
    """Configuration of crosscoders with a sparsity penalty.

    Raises:
        ConfigError: A `shared_penalty_ratio` outside (0, 1].
    """

    shared_penalty_ratio: float = 0.15
    """Sparsity penalty of the first `n_shared_latents`, as a share of the others' (Anthropic: 0.1 to 0.2)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.shared_penalty_ratio <= 1:
            raise ConfigError(f"shared_penalty_ratio={self.shared_penalty_ratio} must lie in (0, 1].")


T_PENALISED_CONFIG = TypeVar("T_PENALISED_CONFIG", bound=PenalisedTrainingCrosscoderConfig)


class PenalisedTrainingCrosscoder(TrainingCrosscoder[T_PENALISED_CONFIG], ABC):
    """Base of the crosscoders with a sparsity penalty."""

    def penalty(self, activity: Float[Tensor, "batch d_sae"]) -> Float[Tensor, ""]:
        """E_tokens[ sum_j w_j a_j ] of a non-negative activity a, w_j = `shared_penalty_ratio` for shared latents."""
        n_shared = self.cfg.n_shared_latents
        if n_shared == 0:
            return activity.sum(dim=-1).mean()
        shared, others = activity[:, :n_shared], activity[:, n_shared:]
        return (self.cfg.shared_penalty_ratio * shared.sum(dim=-1) + others.sum(dim=-1)).mean()

    def penalty_of_pairs(
        self, activity: Float[Tensor, " n_pairs"], pairs: ActivePairs, factors: Float[Tensor, " d_sae"]
    ) -> Float[Tensor, ""]:
        """The penalty of an activity a_ij factor_j that is 0 apart from the pairs."""
        sums = torch.zeros_like(factors).index_add(0, pairs.latents, activity) * factors
        n_shared = self.cfg.n_shared_latents
        return (self.cfg.shared_penalty_ratio * sums[:n_shared].sum() + sums[n_shared:].sum()) / pairs.n_rows
