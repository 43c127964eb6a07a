"""The TopK crosscoder: the k largest codes of every token stay, by code times decoder norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from sae_lens import SAEConfig, TopKSAEConfig
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.training.auxk_crosscoder import AuxKTrainingCrosscoder, AuxKTrainingCrosscoderConfig
from sae_lens_crosscoder.training.sparse.encoder import ScoredPairs
from sae_lens_crosscoder.training.sparse.selection import AnyEncoder, largest_of_ranks, largest_of_rows


@dataclass(kw_only=True)
class TopKTrainingCrosscoderConfig(AuxKTrainingCrosscoderConfig):
    """Configuration of `TopKTrainingCrosscoder`.

    Raises:
        ConfigError: A k that is not between 1 and `d_sae`.
    """

    k: int = 100
    """Active latents of every token."""

    rescale_acts_by_decoder_norm: ClassVar[bool] = False
    """What SAELens's inference class is told: the norms are in its weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= self.d_sae:
            raise ConfigError(f"k={self.k} must lie between 1 and the number of latents, d_sae={self.d_sae}.")

    @override
    @classmethod
    def architecture(cls) -> str:
        return "topk_crosscoder"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return TopKSAEConfig


class TopKTrainingCrosscoder(AuxKTrainingCrosscoder[TopKTrainingCrosscoderConfig]):
    """TopK crosscoder, saved as SAELens's `TopKSAE`.

    f = p on the k largest scores v = p * c of a token and 0 elsewhere, p = ReLU(x W_enc + b_enc): codes are selected by
    the decoder norm, not scaled by it. loss = E_tokens[ sum over sources |x^s - x_hat^s|^2 ] + AuxK.

    The saved SAE selects by its pre-activations alone, so the canonical form multiplies them by c_j: per-source norms
    sum to 1 in the units that the crosscoder was trained in, and in raw units only if all activation scales are equal.
    """

    @override
    def encode_with_hidden_pre(
        self, x: Float[Tensor, "... d_in"]
    ) -> tuple[Float[Tensor, "... d_sae"], Float[Tensor, "... d_sae"]]:
        """Latent activations and pre-activations."""
        hidden_pre = self.pre_activations(x)
        acts, scores = self.scores(hidden_pre)
        rows = scores.reshape(-1, scores.shape[-1])
        kept = self.division.largest_of_rows(rows, self.cfg.k).reshape(scores.shape)
        return self.hook_sae_acts_post(acts * kept), hidden_pre

    @property
    @override
    def k_now(self) -> float:
        """The same in every step."""
        return self.cfg.k

    @override
    def largest_pairs(self, encoder: AnyEncoder) -> ScoredPairs:
        """The k largest of every token."""
        found = largest_of_rows(encoder, min(self.cfg.k, encoder.d_sae))
        return largest_of_ranks(found, encoder, self.division, self.cfg.k) if self.division.splits_latents else found

    @override
    @torch.no_grad()
    def canonical_norms(self) -> Float[Tensor, " d_sae"]:
        norms = self.decoder_norms()
        return torch.where(norms > 0, norms, torch.ones_like(norms))
