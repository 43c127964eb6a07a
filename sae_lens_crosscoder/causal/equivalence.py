"""Whether a latent that both models have does the same in both: ablate it in each, and correlate the effects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.causal.comparison import ModelComparison, PairedRun, ablated, check_latents, kl_divergence
from sae_lens_crosscoder.errors import SourceError


class AblationEquivalence:
    """Pearson correlation, over probes, of what removing a latent does to either model.

    For model m and a probe x (a sequence in which latent j fires) e_j^m(x) is the sum over counted positions of
    KL(ablated model m || model m), where f_j d_j^m is taken from the model's activation at every position. The score of
    a latent is the correlation of e_j^base and e_j^finetuned over its probes: near 1, the two models use it alike.

    Args:
        comparison: The models and the crosscoder.
        latents: Latents that are tested.
        min_probes: Fewest probes that a score is made of; NaN with fewer.

    Raises:
        SourceError: An SAE on the difference, whose decoder has no row for each model.
    """

    def __init__(self, comparison: ModelComparison, latents: Sequence[int], min_probes: int = 8) -> None:
        if comparison.joint.sources.combine == "difference":
            raise SourceError(
                "An SAE on the difference has one decoder row a latent, which cannot be removed from either model. Use "
                "a crosscoder."
            )
        self.comparison = comparison
        self.latents = list(latents)
        check_latents(self.latents, len(comparison.directions))
        self.min_probes = min_probes
        self._effects: list[Float[Tensor, "2 n_latents batch"]] = []

    @torch.no_grad()
    def add(
        self,
        tokens: Int[Tensor, "batch pos"],
        counted: Bool[Tensor, "batch pos"] | None = None,
        n_reruns_at_once: int = 16,
    ) -> None:
        """Ablate every latent in every sequence in which it fires.

        Args:
            tokens: Token sequences.
            counted: Positions whose predictions count; all by default.
            n_reruns_at_once: Sequences that go through a model at once.
        """
        run = self.comparison.run(tokens)
        counted = torch.ones(tokens.shape, dtype=torch.bool) if counted is None else counted.cpu()
        effects = [self._effects_in(label, run, counted, n_reruns_at_once) for label in self._labels]
        self._effects.append(torch.stack(effects))

    @property
    def _labels(self) -> tuple[str, str]:
        return self.comparison.base, self.comparison.finetuned

    def _effects_in(
        self, label: str, run: PairedRun, counted: Bool[Tensor, "batch pos"], size: int
    ) -> Float[Tensor, "n_latents batch"]:
        comparison = self.comparison
        activation = run.base if label == comparison.base else run.finetuned
        log_before = comparison.continued(label, run.tokens, activation)
        effects = torch.full((len(self.latents), len(run.tokens)), torch.nan, dtype=torch.float64)
        reruns = ablated(comparison, label, run, comparison.decoder(label), self.latents, size)
        for which, rows, log_removed in reruns:
            kl = kl_divergence(log_removed, log_before[rows]).double().cpu()
            effects[which, rows] = (kl * counted[rows]).sum(dim=-1)
        return effects

    def compute(self) -> tuple[Float[Tensor, " n_latents"], Int[Tensor, " n_latents"]]:
        """The score of every latent, and how many probes it is made of."""
        if not self._effects:
            empty = torch.full((len(self.latents),), torch.nan, dtype=torch.float64)
            return empty, torch.zeros(len(self.latents), dtype=torch.long)
        base, finetuned = torch.cat(self._effects, dim=-1)
        is_probe = base.isfinite() & finetuned.isfinite()
        n_probes = is_probe.sum(dim=-1)
        scores = [
            _pearson(b[both], f[both]) if n >= self.min_probes else torch.nan
            for b, f, both, n in zip(base, finetuned, is_probe, n_probes.tolist(), strict=True)
        ]
        return torch.tensor(scores, dtype=torch.float64), n_probes


def _pearson(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / (x.norm() * y.norm()))
