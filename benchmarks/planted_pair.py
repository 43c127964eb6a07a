"""Two "models" whose features are known: most are shared, a few belong to one model alone.

A latent feature vector a is sparse, non-negative and correlated (SAELens's `ActivationGenerator`). The activation of
model m is x^m = b^m + sum over features j of a_j (1 + jitter) r_j^m d_j^m + noise: unit directions d_j^m, of which
there are more than dimensions, and norms r_j^m. An exclusive feature has norm 0 in the other model; a shared one has
unequal norms and slightly different directions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from sae_lens.synthetic import (
    ActivationGenerator,
    FeatureDictionary,
    FoldedNormalMagnitudeConfig,
    SyntheticActivationIterator,
    ZipfianFiringProbabilityConfig,
    generate_random_low_rank_correlation_matrix,
)
from torch import Tensor

from sae_lens_crosscoder import Source, Sources

LABELS = ("base", "finetuned")
SHARED = -1
FIRING = ZipfianFiringProbabilityConfig(exponent=0.7, max_prob=0.2, min_prob=0.015)
# Mean of a_j where it fires; its standard deviation is 0.3 of it.
MAGNITUDES = FoldedNormalMagnitudeConfig(mean=1.0, std=0.4, min_value=0.4)


@dataclass(frozen=True)
class PairConfig:
    """How the pair is planted."""

    width: int = 64
    """Columns of each model."""

    n_shared: int = 160
    """Features of both models."""

    n_exclusive: int = 20
    """Features that each model has for itself."""

    n_active: int = 6
    """Features that are active on a token, on average: the L0 of a perfect dictionary."""

    cosine: float = 0.9
    """Cosine between the directions of a shared feature in the two models."""

    max_norm_ratio: float = 4.0
    """Largest ratio of a shared feature's norms: 1 in one model (either, by chance), log-uniform from 1 down in the
    other. Below 9, no shared feature is exclusive by the default thresholds."""

    correlation_rank: int = 8
    """Rank of the correlation between features' firing."""

    correlation_scale: float = 0.17
    """Size of the entries of its factor: correlations of about scale^2 sqrt(rank), before thresholding into firing."""

    strength_jitter: float = 0.2
    """Standard deviation of the factor on a feature's strength, which each model draws anew for every token."""

    noise: float = 0.05
    """Standard deviation of the noise in every column."""

    mean_norm: float = 1.0
    """Norm of b, the mean offset."""

    finetuned_scale: float = 1.5
    """Factor on all activations of the fine-tuned model: raw norms of the models differ."""


class PairDictionary(FeatureDictionary):
    """A feature dictionary over both models side by side, with jitter and noise."""

    def __init__(self, vectors: Float[Tensor, "n_features d_in"], cfg: PairConfig) -> None:
        super().__init__(*vectors.shape, bias=cfg.mean_norm, initializer=None)
        self.feature_vectors.data = vectors
        self.cfg = cfg

    @torch.no_grad()
    def forward(self, feature_activations: Float[Tensor, "batch n_features"]) -> Float[Tensor, "batch d_in"]:
        cfg = self.cfg
        joint = torch.cat(
            [
                feature_activations * (1 + cfg.strength_jitter * torch.randn_like(feature_activations)) @ part
                for part in self.feature_vectors.split(cfg.width, dim=-1)
            ],
            dim=-1,
        )
        joint = joint + self.bias + cfg.noise * torch.randn_like(joint)
        joint[:, cfg.width :] *= cfg.finetuned_scale
        return joint


@dataclass(frozen=True)
class PlantedPair:
    """The planted truth and the activations that follow from it."""

    cfg: PairConfig
    generator: ActivationGenerator
    dictionary: PairDictionary
    owners: Int[Tensor, " n_features"]
    """Which model has the feature alone (0 or 1), -1 (`SHARED`) for both."""

    @classmethod
    def plant(cls, cfg: PairConfig, seed: int) -> PlantedPair:
        """Draw directions, norms, probabilities, magnitudes and correlations."""
        torch.manual_seed(seed)
        n = cfg.n_shared + 2 * cfg.n_exclusive
        owners = torch.tensor([SHARED] * cfg.n_shared + [0] * cfg.n_exclusive + [1] * cfg.n_exclusive)
        base, other = (FeatureDictionary(n, cfg.width).feature_vectors.data for _ in LABELS)
        other = other - (other * base).sum(-1, keepdim=True) * base
        finetuned = cfg.cosine * base + math.sqrt(1 - cfg.cosine**2) * other / other.norm(dim=-1, keepdim=True)
        norms = torch.ones(n, len(LABELS))
        weaker = torch.randint(len(LABELS), (n,))
        norms[torch.arange(n), weaker] = cfg.max_norm_ratio ** -torch.rand(n)
        for model in range(len(LABELS)):
            norms[owners == model] = torch.eye(len(LABELS))[model]
        probabilities = FIRING.generate(n)[torch.randperm(n)]
        means = MAGNITUDES.generate(n, seed=seed)
        generator = ActivationGenerator(
            n,
            firing_probabilities=probabilities * (cfg.n_active / probabilities.sum()),
            mean_firing_magnitudes=means,
            std_firing_magnitudes=0.3 * means,
            correlation_matrix=generate_random_low_rank_correlation_matrix(
                n, cfg.correlation_rank, cfg.correlation_scale, seed=seed
            ),
        )
        vectors = torch.cat([base * norms[:, :1], finetuned * norms[:, 1:]], dim=-1)
        return cls(cfg, generator, PairDictionary(vectors, cfg), owners)

    @property
    def sources(self) -> Sources:
        return Sources(tuple(Source(label, "planted", "planted", self.cfg.width) for label in LABELS))

    def vectors(self) -> tuple[Float[Tensor, "n_features width"], ...]:
        """r_j^m d_j^m of every feature, by model."""
        return self.dictionary.feature_vectors.detach().split(self.cfg.width, dim=-1)

    def batches(self, batch_size: int) -> SyntheticActivationIterator:
        return SyntheticActivationIterator(self.dictionary, self.generator, batch_size)

    def sample(self, n_tokens: int) -> tuple[Float[Tensor, "n n_features"], Float[Tensor, "n d_in"]]:
        """Feature strengths and the activations that follow from them."""
        features = self.generator.sample(n_tokens)
        return features, self.dictionary(features)
