"""Causal tests: put latents' contributions into the base model's run, continue in the fine-tuned model, and reverse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.causal.comparison import ModelComparison, PairedRun, all_but_first, kl_divergence
from sae_lens_crosscoder.errors import ConfigError

NOTHING, RECONSTRUCTION, ERROR, EVERYTHING = "nothing", "reconstruction", "error", "full difference"
"""Patches that every test has: none, all that the crosscoder reconstructs, all that it does not, all there is."""


@dataclass(frozen=True)
class PatchEffect:
    """What a patch does to the next-token distributions of a group of tokens."""

    kl: float
    """Mean KL(target model || patched run), in nats."""

    gap_closed: float
    """1 - kl / kl of the run without a patch: 0 for no effect, 1 for the target model itself; NaN without a gap."""

    n_tokens: int
    """Tokens of the group."""


class PatchTest:
    """How far sets of latents bring one model's run to the other's (Minder et al. 2025, section on causality).

    Forward: the base model runs up to the hook, the contributions of a set of latents are added, h_base + sum_j f_j
    delta_j, and the fine-tuned model continues; the target is the fine-tuned model. Reverse: h_finetuned - sum_j f_j
    delta_j is continued by the base model, and the base model is the target. Where the crosscoder does not read
    (`ignored_tokens`), nothing but the full difference is added. Bounds are measured along: `NOTHING`,
    `RECONSTRUCTION`, `ERROR` (the difference without its reconstruction) and `EVERYTHING`.

    Args:
        comparison: The models and the crosscoder.
        sets: Latents by the name of their set.
        reverse: Take the differences out of the fine-tuned model instead.

    Raises:
        ConfigError: A set with the name of a bound.
    """

    def __init__(self, comparison: ModelComparison, sets: Mapping[str, Sequence[int]], reverse: bool = False) -> None:
        bounds = (NOTHING, RECONSTRUCTION, ERROR, EVERYTHING)
        taken = sorted(set(sets) & set(bounds))
        if taken:
            raise ConfigError(f"A set of latents is called {taken[0]!r}, which names a bound. Rename it.")
        self.comparison = comparison
        self.sets = {name: list(dict.fromkeys(latents)) for name, latents in sets.items()}
        self.reverse = reverse
        self._sums: dict[str, dict[str, float]] = {name: {} for name in (*bounds, *self.sets)}
        self._n_tokens: dict[str, int] = {}

    @torch.no_grad()
    def add(
        self, tokens: Int[Tensor, "batch pos"], groups: Mapping[str, Bool[Tensor, "batch pos"]] | None = None
    ) -> None:
        """Run and rerun the models on some sequences.

        Args:
            tokens: Token sequences.
            groups: Positions whose predictions count, by the name of the group; "all" but the first by default.
        """
        if groups is None:
            groups = {"all": all_but_first(tokens)}
        comparison = self.comparison
        run = comparison.run(tokens)
        start, target_label = (run.finetuned, comparison.base) if self.reverse else (run.base, comparison.finetuned)
        target = run.base if self.reverse else run.finetuned
        log_target = comparison.continued(target_label, tokens, target)
        sign = -1 if self.reverse else 1
        for name, sums in self._sums.items():
            patched = start + sign * self._difference(name, run)
            kl = kl_divergence(log_target, comparison.continued(target_label, tokens, patched)).double()
            for group, mask in groups.items():
                sums[group] = sums.get(group, 0.0) + kl[mask.to(kl.device)].sum().item()
        for group, mask in groups.items():
            self._n_tokens[group] = self._n_tokens.get(group, 0) + int(mask.sum())

    def _difference(self, name: str, run: PairedRun) -> Float[Tensor, "batch pos d_source"]:
        if name == NOTHING:
            return torch.zeros_like(run.base)
        if name == EVERYTHING:
            return run.finetuned - run.base
        if name in self.sets:
            return self.comparison.contribution(run.feature_acts, self.sets[name])
        reconstruction = self._reconstructed_difference(run) * run.is_read[..., None]
        return reconstruction if name == RECONSTRUCTION else run.finetuned - run.base - reconstruction

    def _reconstructed_difference(self, run: PairedRun) -> Float[Tensor, "batch pos d_source"]:
        comparison = self.comparison
        decoded = comparison.sae.decode(run.feature_acts)
        if comparison.joint.sources.combine == "difference":
            return decoded
        columns = comparison.joint.sources.columns
        return decoded[..., columns(comparison.finetuned)] - decoded[..., columns(comparison.base)]

    def compute(self) -> dict[str, dict[str, PatchEffect]]:
        """The effect of every patch (bounds first) on every group of tokens; groups without tokens are left out."""
        return {
            name: {
                group: self._effect(total, self._sums[NOTHING][group], n)
                for group, total in sums.items()
                if (n := self._n_tokens[group]) > 0
            }
            for name, sums in self._sums.items()
        }

    @staticmethod
    def _effect(total: float, without: float, n_tokens: int) -> PatchEffect:
        gap_closed = 1 - total / without if without > 0 else float("nan")
        return PatchEffect(total / n_tokens, gap_closed, n_tokens)
