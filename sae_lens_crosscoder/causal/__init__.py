"""Causal questions: which latents carry the difference of two models' predictions, and what follows from them."""

from sae_lens_crosscoder.causal.attribution import exact_kl_attribution, first_order_kl_attribution
from sae_lens_crosscoder.causal.comparison import ModelComparison, PairedRun, kl_per_token
from sae_lens_crosscoder.causal.equivalence import AblationEquivalence
from sae_lens_crosscoder.causal.patching import PatchEffect, PatchTest

__all__ = [
    "AblationEquivalence",
    "ModelComparison",
    "PairedRun",
    "PatchEffect",
    "PatchTest",
    "exact_kl_attribution",
    "first_order_kl_attribution",
    "kl_per_token",
]
