"""The score by which the demo ranks latents: how much of the difference of the two models' predictions they carry.

It knows neither the trigger nor the payload.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from sae_lens_crosscoder.demo.behaviour import latent_activations
from sae_lens_crosscoder.joint_model import JOINT_HOOK_NAME, JointModel

SCORE_NAME = "KL path attribution"
SCORE_MEANING = (
    "mean over tokens of f_j <d_j(finetuned) - d_j(base), g>, where g is the gradient of KL(finetuned || base) with "
    "respect to the fine-tuned model's activation at the hook, averaged along the straight path from the base model's "
    "activation to the fine-tuned model's (integrated gradients)"
)


def kl_path_attribution(
    joint: JointModel, sae: SAE[Any], tokens: Int[Tensor, "n length"], n_points: int = 4
) -> Float[Tensor, " d_sae"]:
    """How much of KL(finetuned || base) each latent carries, by integrated gradients (Sundararajan et al. 2017).

    If the crosscoder reconstructed both models perfectly, the scores would add up to the mean KL per token that the
    difference of the two activations makes. The first position (BOS) is left out.

    Args:
        joint: A joint model with the sources "base" and "finetuned".
        sae: Its crosscoder.
        tokens: Tokens of the data mixture.
        n_points: Points of the path at which the gradient is taken.
    """
    base, finetuned = joint.sources.columns("base"), joint.sources.columns("finetuned")
    with torch.no_grad():
        joined = joint(tokens)
        log_base = joint.view("base")(tokens, return_type="logits").log_softmax(dim=-1)
    start, end = joined[..., base], joined[..., finetuned]
    gradient = torch.zeros_like(end)
    for i in range(n_points):
        point = start + (i + 0.5) / n_points * (end - start)
        gradient += _kl_gradient(joint, tokens, point, log_base) / n_points
    with torch.no_grad():
        directions = sae.W_dec[:, finetuned] - sae.W_dec[:, base]
        codes = latent_activations(joint, sae, tokens)
        return (codes * (gradient.to(sae.device) @ directions.T))[:, 1:].mean(dim=(0, 1))


def _kl_gradient(joint: JointModel, tokens: Tensor, point: Tensor, log_base: Tensor) -> Tensor:
    """Gradient of the summed KL between the fine-tuned model, continued from `point`, and the base model."""
    point = point.detach().requires_grad_()
    columns = joint.sources.columns("finetuned")

    def replace(joined: Tensor, hook: Any) -> Tensor:
        return torch.cat([joined[..., : columns.start], point, joined[..., columns.stop :]], dim=-1)

    view = joint.view("finetuned")
    logits = view.run_with_hooks(tokens, return_type="logits", fwd_hooks=[(JOINT_HOOK_NAME, replace)])
    log_finetuned = logits.log_softmax(dim=-1)
    kl = (log_finetuned.exp() * (log_finetuned - log_base))[:, 1:].sum()
    return torch.autograd.grad(kl, point)[0]
