"""Small dictionaries and joint activations for the tests of `diffing`, without a model and without SAELens."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sae_lens_crosscoder import Source, Sources


@dataclass
class StandInSAE:
    """A ReLU dictionary, or a JumpReLU one with thresholds, with SAELens's members and nothing else."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor | None = None
    cfg: Any = field(default_factory=SimpleNamespace)
    n_encoded: int = 0

    def encode(self, x: Tensor) -> Tensor:
        self.n_encoded += 1
        hidden = x @ self.W_enc + self.b_enc
        return hidden.relu() if self.threshold is None else hidden * (hidden > self.threshold)

    def decode(self, feature_acts: Tensor) -> Tensor:
        return feature_acts @ self.W_dec + self.b_dec


def make_sources(n: int = 2, width: int = 6, combine: str = "concat") -> Sources:
    labels = ["base", "chat", "third", "fourth"][:n]
    sources = [Source(label, label, "blocks.0.hook_resid_pre", width) for label in labels]
    return Sources(tuple(sources), combine)  # type: ignore[arg-type]


def random_sae(d_in: int = 12, d_sae: int = 10, seed: int = 0, dtype: torch.dtype = torch.float64) -> StandInSAE:
    """Weights of which none vanishes; about a third of the activations is above zero."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = (normal(d_in, d_sae) / d_in**0.5, normal(d_sae) - 0.5, normal(d_sae, d_in), normal(d_in))
    return StandInSAE(*(w.to(dtype) for w in weights))


def random_activations(n: int = 200, d_joint: int = 12, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, d_joint, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def identity_sae(d: int) -> StandInSAE:
    """Its latent activations are the positive activations of the first of two sources themselves."""
    first = torch.eye(2 * d, d, dtype=torch.float64)
    return StandInSAE(first, first.new_zeros(d), first.T.contiguous(), first.new_zeros(2 * d))
