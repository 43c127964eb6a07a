"""A planted pair small enough to be read off exactly, and the crosscoder that does."""

from __future__ import annotations

import torch
from planted_pair import PairConfig, PlantedPair
from sae_lens import StandardSAE, StandardSAEConfig

# As many dimensions as features, orthogonal: a token's strengths can be read off exactly.
CFG = PairConfig(
    width=16,
    n_shared=8,
    n_exclusive=4,
    n_active=2,
    strength_jitter=0.0,
    noise=0.0,
    mean_norm=0.0,
    finetuned_scale=2.0,
)
SCALES = [1.0, 0.5]
"""What undoes `finetuned_scale`: norms are then those that were planted."""


def perfect(pair: PlantedPair) -> StandardSAE:
    """Latent j is feature j, with its strength as activation."""
    sae = StandardSAE(StandardSAEConfig(d_in=32, d_sae=16))
    raw = pair.dictionary.feature_vectors * torch.tensor([1.0, CFG.finetuned_scale]).repeat_interleave(16)
    sae.W_dec.data = raw.clone()
    sae.W_enc.data = torch.linalg.pinv(raw)
    # A little above 0, so that rounding does not count as firing.
    sae.b_enc.data = torch.full((16,), -1e-4)
    return sae
