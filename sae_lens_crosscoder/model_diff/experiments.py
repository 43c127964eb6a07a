"""Experiments on the models: latents removed one by one, put from one model into the other, ablated in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.causal import (
    AblationEquivalence,
    ModelComparison,
    PatchEffect,
    PatchTest,
    exact_kl_attribution,
    first_order_kl_attribution,
)
from sae_lens_crosscoder.diffing.scaling_result import mean_ranks
from sae_lens_crosscoder.model_diff.setup import ROLES_OF_ANSWERS, DiffConfig, DiffSubject, predicts
from sae_lens_crosscoder.progress import token_bar


@dataclass(frozen=True)
class ExactAttribution:
    """Exact against first-order KL attribution, of the latents that carry most by the latter."""

    latents: Int[Tensor, " n_latents"]
    exact: Float[Tensor, " n_latents"]
    """Mean fall of the KL per counted token when the latent is removed, in nats."""

    first_order: Float[Tensor, " n_latents"]
    """The same by the gradient, on the same tokens."""

    rank_correlation: float
    """Spearman's, of the latents that fire on these tokens; NaN for fewer than three."""


@dataclass(frozen=True)
class Experiments:
    """What the models did."""

    n_tokens: int
    """Counted tokens."""

    sets: dict[str, list[int]]
    """The latents of every set that was patched."""

    forward: dict[str, dict[str, PatchEffect]]
    """Base model's run, patched and continued by the fine-tuned model: effect by patch and group of tokens."""

    reverse: dict[str, dict[str, PatchEffect]]
    """The fine-tuned model's run without the latents, continued by the base model."""

    attribution: ExactAttribution
    equivalence: Float[Tensor, " d_sae"]
    """Correlation of ablation effects in the two models; NaN for latents that were not tested."""


def experiment(
    subject: DiffSubject,
    comparison: ModelComparison,
    config: DiffConfig,
    sets: Mapping[str, Sequence[int]],
    first: Sequence[int],
    shared: Sequence[int],
) -> Experiments:
    """Patch sets of latents, remove the first ones exactly, and ablate shared ones in both models.

    Args:
        subject: The models and the text.
        comparison: The models and the crosscoder.
        config: The effort.
        sets: Latents that are patched together, by name.
        first: Latents whose attribution is measured exactly.
        shared: Latents that are ablated in both models; none for an SAE on the difference.
    """
    everything = subject.first_sequences(config.causal_budget_tokens)
    tokens, counted = subject.sequences.tokens[everything], subject.counted(everything)
    roles = subject.sequences.roles[everything]
    forward, reverse = (PatchTest(comparison, sets, reverse=reverse) for reverse in (False, True))
    equivalence = AblationEquivalence(comparison, shared) if shared else None
    exact = torch.zeros(len(first), dtype=torch.float64)
    by_gradient = torch.zeros(len(first), dtype=torch.float64)
    size = comparison.sequences_at_once(tokens.shape[1], config.n_sequences_at_once)
    reruns = 2 * size
    fired = torch.zeros(len(first), dtype=torch.bool)
    with token_bar("Causal tests", tokens.numel()) as bar:
        for start in range(0, len(tokens), size):
            rows = slice(start, start + size)
            groups = {"all": counted[rows]}
            groups |= {name: counted[rows] & predicts(roles[rows] == role) for name, role in ROLES_OF_ANSWERS.items()}
            forward.add(tokens[rows], groups)
            reverse.add(tokens[rows], groups)
            removed = exact_kl_attribution(comparison, tokens[rows], first, reruns).cpu()
            exact += removed.double()[:, counted[rows]].sum(dim=1)
            fired |= (removed != 0).any(dim=2).any(dim=1)
            gradient = first_order_kl_attribution(comparison, tokens[rows], counted[rows], config.n_path_points)
            by_gradient += gradient[..., list(first)].double().sum(dim=(0, 1)).cpu()
            if equivalence is not None:
                equivalence.add(tokens[rows], counted[rows], reruns)
            bar.update(tokens[rows].numel())
    n_tokens = max(1, int(counted.sum()))
    scores = torch.full((len(subject.sae.W_dec),), torch.nan, dtype=torch.float64)
    if equivalence is not None:
        scores[list(shared)] = equivalence.compute()[0]
    attribution = ExactAttribution(
        torch.tensor(list(first), dtype=torch.long),
        exact / n_tokens,
        by_gradient / n_tokens,
        spearman(exact[fired], by_gradient[fired]),
    )
    named = {name: list(latents) for name, latents in sets.items()}
    return Experiments(n_tokens, named, forward.compute(), reverse.compute(), attribution, scores)


def spearman(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    """Rank correlation; NaN for fewer than three values, and where one side is all alike."""
    if len(x) < 3 or bool((x == x[0]).all()) or bool((y == y[0]).all()):
        return float("nan")
    return float(torch.corrcoef(torch.stack([mean_ranks(x), mean_ranks(y)]))[0, 1])
