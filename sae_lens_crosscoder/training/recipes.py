"""The published training recipes, which are the defaults of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Defaults of a run that depend on the architecture."""

    lr: float
    """Learning rate of Adam (betas 0.9 and 0.999, gradient norm clipped at 1)."""

    train_batch_size_tokens: int = 4096
    """Tokens of a training batch."""

    lr_warm_up_steps: int = 0
    """Steps over which the learning rate rises, at most a tenth of the run."""

    lr_decay_share: float = 0.0
    """Share of the run, at its end, over which the learning rate falls to 0."""

    dead_after_tokens: int = 10_000_000
    """Tokens without firing after which a latent is dead."""


KISSANE_2024 = Recipe(lr=5e-5, lr_decay_share=0.2)
"""Kissane et al. 2024 (Gemma-2-2B, 400 M tokens): L1 with 5 % warm-up, linear decay over the last fifth."""

MINDER_2025 = Recipe(lr=1e-4, train_batch_size_tokens=2048, lr_warm_up_steps=1000)
"""Minder et al. 2025 (Gemma-2-2B, 100 M tokens): BatchTopK with k = 100, AuxK after 10 M silent tokens."""

SAELENS = Recipe(lr=3e-4, dead_after_tokens=4_096_000)
"""SAELens's own defaults, for its own architectures."""

_RECIPES = {
    "standard_crosscoder": KISSANE_2024,
    "gated_crosscoder": KISSANE_2024,
    "jumprelu_crosscoder": KISSANE_2024,
    "batchtopk_crosscoder": MINDER_2025,
    "topk_crosscoder": MINDER_2025,
    "matryoshka_batchtopk_crosscoder": MINDER_2025,
}


def recipe_for(architecture: str) -> Recipe:
    """The recipe of an architecture; SAELens's defaults for one of SAELens's."""
    return _RECIPES.get(architecture, SAELENS)
