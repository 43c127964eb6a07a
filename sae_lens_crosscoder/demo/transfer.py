"""Whether latents give the base model what fine-tuning taught: their contributions are added to its run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.causal import ModelComparison, PairedRun
from sae_lens_crosscoder.demo.behaviour import Prompts, random_sets
from sae_lens_crosscoder.demo.documents import generator


@torch.no_grad()
def payload_gain(comparison: ModelComparison, prompts: Prompts, latents: Sequence[int], seed: int) -> dict[str, float]:
    """Log-probability of the whole payload in the base model's run, in nats, mean over prompts.

    As it is, with the latents' contributions sum_j f_j delta_j added at every position, and with those of as many
    random active ones, stretched at every position to the same norm (mean and highest of twenty draws).
    """
    run = comparison.run(prompts.tokens)
    added = comparison.contribution(run.feature_acts, latents)
    random: list[float] = []
    for drawn in random_sets(run.feature_acts, prompts, latents, generator(seed, "random latents of equal norm")):
        other = comparison.contribution(run.feature_acts, drawn)
        stretch = added.norm(dim=-1, keepdim=True) / other.norm(dim=-1, keepdim=True).clamp(min=1e-9)
        random.append(_log_probability(comparison, prompts, run, other * stretch))
    return {
        "as_it_is": _log_probability(comparison, prompts, run, torch.zeros_like(added)),
        "with_latents": _log_probability(comparison, prompts, run, added),
        "with_random": sum(random) / len(random),
        "with_random_highest": max(random),
    }


def _log_probability(
    comparison: ModelComparison, prompts: Prompts, run: PairedRun, added: Float[Tensor, "n_prompts length d_source"]
) -> float:
    log_p = comparison.continued(comparison.base, prompts.tokens, run.base + added).cpu()
    at = log_p[torch.arange(len(log_p))[:, None], prompts.predicts]
    payload = prompts.payload.expand(len(at), -1)[..., None]
    return at.gather(-1, payload)[..., 0].sum(dim=1).mean().item()
