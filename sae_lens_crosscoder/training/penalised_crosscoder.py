"""What the crosscoders with a sparsity penalty share: a smaller one for designated shared latents."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.training.crosscoder import TrainingCrosscoder, TrainingCrosscoderConfig


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
        return self.penalty_of_sums(activity.sum(dim=0), len(activity))

    def penalty_of_sums(self, sums: Float[Tensor, " d_sae"], n_tokens: int) -> Float[Tensor, ""]:
        """The same from each latent's activity, summed over the tokens of a batch."""
        shared, others = sums[: self.cfg.n_shared_latents], sums[self.cfg.n_shared_latents :]
        return (self.cfg.shared_penalty_ratio * shared.sum() + others.sum()) / n_tokens
