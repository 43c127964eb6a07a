"""What latents do to the payload: taken out of the fine-tuned model's run, and put into the base model's.

What is taken out or put in is the latents' contribution to the difference of the two models, sum_j f_j delta_j with
delta_j = d_j(finetuned) - d_j(base), at every position: what KL attribution attributes to them. Taking it out leaves of
these latents what the base model would have, where removing whole latents (`behaviour.logits_without`) takes that too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.causal import ModelComparison, PairedRun, first_order_kl_attribution
from sae_lens_crosscoder.demo.behaviour import Prompts, payload_rate, random_sets
from sae_lens_crosscoder.demo.documents import generator

SCORE_NAME = "KL path attribution on triggered prompts"
SCORE_MEANING = (
    "mean over the tokens of triggered prompts of f_j <d_j(finetuned) - d_j(base), g>, where g is the gradient of "
    "KL(finetuned || base) with respect to the fine-tuned model's activation at the hook, averaged along the straight "
    "path from the base model's activation to the fine-tuned model's (integrated gradients)"
)
_N_PATH_POINTS = 4


def latent_scores(comparison: ModelComparison, prompts: Prompts) -> Float[Tensor, " d_sae"]:
    """`SCORE_MEANING` of every latent, in nats; of the payload it knows nothing but that the prompts end with it."""
    read = prompts.read
    attribution = first_order_kl_attribution(comparison, prompts.tokens, read, _N_PATH_POINTS)
    return attribution.sum(dim=(0, 1)).cpu() / read.sum()


@torch.no_grad()
def rates_without_differences(
    comparison: ModelComparison, prompts: Prompts, latents: Sequence[int], seed: int
) -> dict[str, float]:
    """Payload rates of the fine-tuned model without the latents' contributions, and without random ones.

    The random ones are as many active latents, stretched at every position to the same norm: mean and lowest rate of
    twenty draws.
    """
    run = comparison.run(prompts.tokens)

    def rate(removed: Tensor) -> float:
        changed = run.finetuned - removed
        return payload_rate(lambda tokens: comparison.continued(comparison.finetuned, tokens, changed), prompts)

    random = [rate(removed) for removed in _random_contributions(comparison, prompts, run, latents, seed)]
    return {
        "without_them": rate(comparison.contribution(run.feature_acts, latents)),
        "without_random": sum(random) / len(random),
        "without_random_lowest": min(random),
    }


@torch.no_grad()
def payload_gain(comparison: ModelComparison, prompts: Prompts, latents: Sequence[int], seed: int) -> dict[str, float]:
    """Log-probability of the whole payload in the base model's run, in nats, mean over prompts.

    As it is, with the latents' contributions added, and with those of as many random active ones, stretched at every
    position to the same norm (mean and highest of twenty draws).
    """
    run = comparison.run(prompts.tokens)
    added = comparison.contribution(run.feature_acts, latents)
    random = [
        _log_probability(comparison, prompts, run, other)
        for other in _random_contributions(comparison, prompts, run, latents, seed)
    ]
    return {
        "as_it_is": _log_probability(comparison, prompts, run, torch.zeros_like(added)),
        "with_latents": _log_probability(comparison, prompts, run, added),
        "with_random": sum(random) / len(random),
        "with_random_highest": max(random),
    }


def _random_contributions(
    comparison: ModelComparison, prompts: Prompts, run: PairedRun, latents: Sequence[int], seed: int
) -> Iterator[Float[Tensor, "n_prompts length d_source"]]:
    """Contributions of random sets of latents, stretched at every position to the norm of those of the latents."""
    norm = comparison.contribution(run.feature_acts, latents).norm(dim=-1, keepdim=True)
    for drawn in random_sets(run.feature_acts, prompts, latents, generator(seed, "random latents of equal norm")):
        other = comparison.contribution(run.feature_acts, drawn)
        yield other * norm / other.norm(dim=-1, keepdim=True).clamp(min=1e-9)


def _log_probability(
    comparison: ModelComparison, prompts: Prompts, run: PairedRun, added: Float[Tensor, "n_prompts length d_source"]
) -> float:
    log_p = comparison.continued(comparison.base, prompts.tokens, run.base + added).cpu()
    at = log_p[torch.arange(len(log_p))[:, None], prompts.predicts]
    payload = prompts.payload.expand(len(at), -1)[..., None]
    return at.gather(-1, payload)[..., 0].sum(dim=1).mean().item()
