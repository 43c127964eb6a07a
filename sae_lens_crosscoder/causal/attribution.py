"""How much of the KL between two models each latent carries: exactly, by rerunning, or to first order, by a gradient.

No code is public for the KL attribution of Aranguri, Drori and Nanda (2025); the definitions here are this package's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.causal.comparison import ModelComparison, ablated, all_but_first, kl_divergence
from sae_lens_crosscoder.errors import ConfigError


def first_order_kl_attribution(
    comparison: ModelComparison,
    tokens: Int[Tensor, "batch pos"],
    counted: Bool[Tensor, "batch pos"] | None = None,
    n_path_points: int = 0,
) -> Float[Tensor, "batch pos d_sae"]:
    """a_j(s) = f_j(s) <delta_j, g(s)>: how much of the summed KL a latent's activity at position s carries.

    g(s) is the gradient, with respect to the fine-tuned model's activation at position s, of the sum over counted
    positions t of KL(finetuned || base) at t. With `n_path_points=0` it is taken at that activation: one backward pass
    for all latents. With n > 0 it is averaged over n points (the middles of n equal steps) of the straight path from
    the base model's activation to the fine-tuned model's (integrated gradients, Sundararajan et al. 2017): if the
    crosscoder reconstructs the difference, the attributions then add up to the KL that the difference makes. At one
    point alone that is not so: KL is curved, and where the fine-tuned model is sure of itself its gradient vanishes.

    Args:
        comparison: The models and the crosscoder.
        tokens: Token sequences.
        counted: Positions whose KL counts; all but the first (BOS) by default.
        n_path_points: Points of the path; each costs a forward and a backward pass.

    Raises:
        ConfigError: A negative number of points.
    """
    if n_path_points < 0:
        raise ConfigError(f"n_path_points={n_path_points} must be 0 or more.")
    counted = all_but_first(tokens) if counted is None else counted
    run = comparison.run(tokens)
    with torch.no_grad():
        log_base = comparison.continued(comparison.base, tokens, run.base)
    shares = [(i + 0.5) / n_path_points for i in range(n_path_points)] or [1.0]
    gradient = torch.zeros_like(run.finetuned)
    for share in shares:
        point = run.base + share * (run.finetuned - run.base) if n_path_points else run.finetuned
        gradient += _kl_gradient(comparison, tokens, point, log_base, counted) / len(shares)
    with torch.no_grad():
        return run.feature_acts * (gradient.to(comparison.directions.dtype) @ comparison.directions.T)


def _kl_gradient(
    comparison: ModelComparison, tokens: Tensor, point: Tensor, log_base: Tensor, counted: Tensor
) -> Tensor:
    point = point.detach().requires_grad_()
    log_finetuned = comparison.continued(comparison.finetuned, tokens, point)
    kl = kl_divergence(log_finetuned, log_base)
    return torch.autograd.grad(kl[counted.to(kl.device)].sum(), point)[0]


@torch.no_grad()
def exact_kl_attribution(
    comparison: ModelComparison,
    tokens: Int[Tensor, "batch pos"],
    latents: Sequence[int],
    n_reruns_at_once: int = 16,
) -> Float[Tensor, "n_latents batch pos"]:
    """a_j(t) = KL_t - KL_t without j: how much the KL(finetuned || base) at t falls when the latent is removed.

    The latent's contribution to the difference, f_j delta_j, is taken from the fine-tuned model's activation at every
    position, and the fine-tuned model is rerun from the hook. A sequence in which a latent is silent is not rerun.

    Args:
        comparison: The models and the crosscoder.
        tokens: Token sequences.
        latents: Latents that are removed, one at a time.
        n_reruns_at_once: Sequences that go through the model at once.
    """
    run = comparison.run(tokens)
    log_base = comparison.continued(comparison.base, tokens, run.base)
    before = kl_divergence(comparison.continued(comparison.finetuned, tokens, run.finetuned), log_base)
    attribution = before.new_zeros(len(latents), *before.shape)
    reruns = ablated(comparison, comparison.finetuned, run, comparison.directions, latents, n_reruns_at_once)
    for which, rows, log_removed in reruns:
        attribution[which, rows] = before[rows] - kl_divergence(log_removed, log_base[rows])
    return attribution
