"""Causal questions: which latents carry the difference of two models' predictions, and what follows from them."""

from sae_lens_crosscoder.causal.attribution import exact_kl_attribution, first_order_kl_attribution
from sae_lens_crosscoder.causal.comparison import ModelComparison, PairedRun, kl_per_token
from sae_lens_crosscoder.causal.equivalence import AblationEquivalence
from sae_lens_crosscoder.causal.patching import PatchEffect, PatchTest
from sae_lens_crosscoder.causal.steering import Steering, generate_side_by_side

__all__ = [
    "AblationEquivalence",
    "ModelComparison",
    "PairedRun",
    "PatchEffect",
    "PatchTest",
    "Steering",
    "exact_kl_attribution",
    "first_order_kl_attribution",
    "generate_side_by_side",
    "kl_per_token",
]
