"""Where the two models' predictions differ, and which latents carry it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations import TokenRole
from sae_lens_crosscoder.causal import ModelComparison, first_order_kl_attribution
from sae_lens_crosscoder.causal.comparison import kl_divergence
from sae_lens_crosscoder.errors import DataError
from sae_lens_crosscoder.model_diff.setup import DiffConfig, DiffSubject, predicts
from sae_lens_crosscoder.progress import token_bar

_N_NEXT_TOKENS = 5
_N_LATENTS_OF_DOCUMENT = 12


@dataclass(frozen=True)
class DivergentSequence:
    """A sequence on which the models differ much, token by token."""

    sequence: int
    """Position in the subject's sequences."""

    kl: Float[Tensor, " context"]
    """KL(finetuned || base) of the prediction after each token, in nats; NaN where it is not counted."""

    next_tokens: dict[str, tuple[Int[Tensor, "context k"], Float[Tensor, "context k"]]]
    """By label: the likeliest next tokens and their probabilities."""

    latents: Int[Tensor, " n_latents"]
    """Latents that carry most of the sequence's KL, most first."""

    attribution: Float[Tensor, "n_latents context"]
    """Their attribution at every token."""


@dataclass(frozen=True)
class Divergence:
    """KL of the two models over some text."""

    n_tokens: int
    """Counted tokens."""

    kl: dict[str, float]
    """Mean KL(finetuned || base) per counted token in nats: of all, and by data set and role of the token predicted."""

    attribution: Float[Tensor, " d_sae"]
    """First-order path attribution of every latent: mean over counted tokens, in nats."""

    sequences: list[DivergentSequence]
    """Those with the largest KL, largest first."""


def measure_divergence(subject: DiffSubject, comparison: ModelComparison, config: DiffConfig) -> Divergence:
    """KL per token and its attribution to latents on the first sequences, and the sequences that differ most."""
    everything = subject.first_sequences(config.kl_budget_tokens)
    sequences = subject.sequences
    tokens, counted = sequences.tokens[everything], subject.counted(everything)
    if not counted.any():
        raise DataError("No token of the text counts: all are excluded (exclude_special_tokens). Use other data.")
    size = comparison.sequences_at_once(tokens.shape[1], config.n_sequences_at_once)
    total = torch.zeros(len(subject.sae.W_dec), dtype=torch.float64)
    kl = torch.zeros(tokens.shape, dtype=torch.float64)
    with token_bar("Attributing KL", tokens.numel()) as bar:
        for rows in _chunks(len(tokens), size):
            attribution = first_order_kl_attribution(comparison, tokens[rows], counted[rows], config.n_path_points)
            total += attribution.double().sum(dim=(0, 1)).cpu()
            kl[rows] = _log_probabilities_and_kl(comparison, tokens[rows])[2].double().cpu() * counted[rows]
            bar.update(tokens[rows].numel())
    if not (total.isfinite().all() and kl.isfinite().all()):
        raise DataError(
            f"KL({comparison.finetuned} || {comparison.base}) is infinite or not a number: a model gives such logits. "
            "Load it in float32 or bfloat16, or look for tokens that only one of the models excludes."
        )
    order = kl.sum(dim=1).argsort(descending=True)[: config.n_kl_documents].tolist()
    return Divergence(
        n_tokens=int(counted.sum()),
        kl=_mean_kl(subject, kl, counted),
        attribution=total / max(1, int(counted.sum())),
        sequences=[_divergent(comparison, tokens, counted, row, config) for row in order],
    )


def _divergent(
    comparison: ModelComparison, tokens: Tensor, counted: Tensor, row: int, config: DiffConfig
) -> DivergentSequence:
    one = slice(row, row + 1)
    attribution = first_order_kl_attribution(comparison, tokens[one], counted[one], config.n_path_points)[0].cpu()
    latents = attribution.sum(dim=0).argsort(descending=True)[:_N_LATENTS_OF_DOCUMENT]
    *log_probabilities, kl = _log_probabilities_and_kl(comparison, tokens[one])
    next_tokens = {}
    for label, log_p in zip((comparison.finetuned, comparison.base), log_probabilities, strict=True):
        top = log_p[0].topk(min(_N_NEXT_TOKENS, log_p.shape[-1]), dim=-1)
        next_tokens[label] = (top.indices.cpu(), top.values.exp().cpu())
    return DivergentSequence(
        sequence=row,
        kl=torch.where(counted[row], kl[0].cpu(), torch.nan),
        next_tokens=next_tokens,
        latents=latents,
        attribution=attribution[:, latents].T.contiguous(),
    )


@torch.no_grad()
def _log_probabilities_and_kl(comparison: ModelComparison, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    run = comparison.run(tokens)
    log_finetuned = comparison.continued(comparison.finetuned, tokens, run.finetuned)
    log_base = comparison.continued(comparison.base, tokens, run.base).to(log_finetuned.device)
    return log_finetuned, log_base, kl_divergence(log_finetuned, log_base)


def _mean_kl(subject: DiffSubject, kl: Tensor, counted: Tensor) -> dict[str, float]:
    n = len(kl)
    sequences = subject.sequences
    groups = {"all": counted}
    if len(sequences.dataset_names) > 1:
        groups |= {
            f"data set {name}": counted & (sequences.datasets[:n] == i)[:, None]
            for i, name in enumerate(sequences.dataset_names)
        }
    roles = {int(role) for role in sequences.roles[:n].unique()}
    if len(roles) > 1:
        groups |= {
            f"{role.name.lower().replace('_', ' ')} tokens": counted & predicts(sequences.roles[:n] == role)
            for role in TokenRole
            if int(role) in roles
        }
    return {name: float(kl[mask].mean()) for name, mask in groups.items() if mask.any()}


def _chunks(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
