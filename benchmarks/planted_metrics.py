"""What a trained crosscoder found of a planted pair, judged by what a user reads: the saved SAE and its classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from planted_pair import LABELS, PlantedPair
from sae_lens import SAE
from torch import Tensor
from torch.nn.functional import normalize

from sae_lens_crosscoder.diffing import PairGeometry
from sae_lens_crosscoder.evals import ExplainedVariance

MIN_COSINE = 0.8
MIN_CORRELATION = 0.5


@dataclass(frozen=True)
class Judgement:
    """Which latents are exclusive, and which of those are right.

    A latent *matches* feature j in model m if the cosine of its decoder in m with d_j^m exceeds `MIN_COSINE` and the
    correlation over tokens of its activation with a_j exceeds `MIN_CORRELATION`. Classes are those of
    `diffing.classify_latents` with the default thresholds; a latent silent on all evaluated tokens is dead.
    """

    matches: Bool[Tensor, "n_models d_sae n_features"]
    """Which latents match which features in each model."""

    claims: Bool[Tensor, "n_models d_sae"]
    """Latents that are classified as exclusive to each model."""

    geometry: PairGeometry
    """Relative decoder norms and classes."""

    l0: float
    """Active latents a token."""

    explained_variance: float
    """1 - E|e|^2 / E|x - mean x|^2 over both models, each scaled as in training, so that they weigh the same."""

    own: Bool[Tensor, "n_models n_features"]
    """Planted exclusive features of each model."""

    @property
    def is_exclusive(self) -> Bool[Tensor, " d_sae"]:
        """Latents that are classified as exclusive to either model."""
        return self.claims.any(dim=0)

    @property
    def is_real(self) -> Bool[Tensor, " d_sae"]:
        """Those of them that match a planted exclusive feature of that model."""
        return (self.claims & (self.matches & self.own[:, None]).any(dim=-1)).any(dim=0)

    @property
    def recall_exclusive(self) -> float:
        """Share of the planted exclusive features that a latent exclusive to the same model matches."""
        return (self._claimed & self.own).sum().item() / self.own.sum().item()

    @property
    def false_exclusive_rate(self) -> float:
        """Share of the exclusive latents that match no planted exclusive feature of that model; 0 if there are none."""
        n_exclusive = int(self.is_exclusive.sum())
        return (n_exclusive - int(self.is_real.sum())) / n_exclusive if n_exclusive else 0.0

    @property
    def details(self) -> dict[str, int]:
        """Counts behind the rates: latents by class, and what became of shared features.

        `n_one_sided_features` are planted shared features that an exclusive latent of one model matches (the other
        side shrank away), `n_decoupled_features` those that exclusive latents of both models match.
        """
        n_models_claiming = (self._claimed & ~self.own.any(dim=0)).sum(dim=0)
        return {
            "n_exclusive_latents": int(self.is_exclusive.sum()),
            "n_real_exclusive_latents": int(self.is_real.sum()),
            "n_one_sided_features": int((n_models_claiming == 1).sum()),
            "n_decoupled_features": int((n_models_claiming == 2).sum()),
            "n_shared_latents": self.geometry.counts["shared"],
            "n_dead_latents": self.geometry.counts["dead"],
        }

    @property
    def _claimed(self) -> Bool[Tensor, "n_models n_features"]:
        return (self.matches & self.claims[..., None]).any(dim=1)


@torch.no_grad()
def judge(
    sae: SAE[Any], scales: list[float], pair: PlantedPair, tokens: tuple[Float[Tensor, "n j"], Float[Tensor, "n d_in"]]
) -> Judgement:
    """Compare a saved crosscoder with the truth.

    Args:
        sae: The stock SAE on raw activations.
        scales: Activation scale of each model that is folded into it.
        pair: The truth.
        tokens: Feature strengths and activations, from `pair.sample`.
    """
    features, x = tokens
    widths = pair.sources.widths
    codes = sae.encode(x)
    units = torch.tensor(scales).repeat_interleave(torch.tensor(widths))
    variance = ExplainedVariance((x * units).double().mean(dim=0))
    variance.add(x * units, sae.decode(codes) * units)
    geometry = PairGeometry.from_decoder(sae.W_dec, widths, LABELS, scales=scales, dead=~(codes > 0).any(dim=0))
    correlations = normalize(codes - codes.mean(dim=0), dim=0).T @ normalize(features - features.mean(dim=0), dim=0)
    cosines = torch.stack(
        [
            normalize(learned, dim=-1) @ normalize(planted, dim=-1).T
            for learned, planted in zip(sae.W_dec.split(widths, dim=-1), pair.vectors(), strict=True)
        ]
    )
    return Judgement(
        matches=(cosines > MIN_COSINE) & (correlations > MIN_CORRELATION),
        claims=torch.stack([torch.tensor([name == f"{label}-only" for name in geometry.classes]) for label in LABELS]),
        geometry=geometry,
        l0=(codes > 0).sum(dim=-1).double().mean().item(),
        explained_variance=variance.compute()["explained_variance"],
        own=torch.stack([pair.owners == model for model in range(len(LABELS))]),
    )
