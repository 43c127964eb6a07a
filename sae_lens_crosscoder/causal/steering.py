"""Steering: what a model says with latents added to it, or taken from it, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.causal.comparison import ModelComparison, check_latents
from sae_lens_crosscoder.errors import ConfigError


@dataclass(frozen=True)
class Steering:
    """What is done to a model at its hook, at every position.

    Raises:
        ConfigError: An activation that is no finite number.
    """

    add: Mapping[int, float] = field(default_factory=dict[int, float])
    """Latents that are added, with their activations: x + a_j d_j, in the units of the crosscoder's latents."""

    remove: Sequence[int] = ()
    """Latents that are taken away: x - f_j d_j."""

    def __post_init__(self) -> None:
        if broken := {latent: value for latent, value in self.add.items() if not math.isfinite(value)}:
            raise ConfigError(f"Activations must be finite numbers, unlike {broken}: the models would say nothing.")


def steering_edit(
    comparison: ModelComparison, label: str, steering: Steering
) -> Callable[[Float[Tensor, "batch n_new d_in"]], Float[Tensor, "batch n_new d_in"]]:
    """The edit of joint activations that steers one model; d_j is that model's decoder row.

    For an SAE on the difference d_j is the direction of the difference, and it is the fine-tuned model minus the base
    model that is changed: adding moves either model towards the fine-tuned one.

    Raises:
        ConfigError: A latent that there is not.
    """
    W_dec, sources = comparison.linear_decoder.directions, comparison.joint.sources
    check_latents([*steering.add, *steering.remove], len(W_dec))
    columns = sources.columns(label)
    # A view puts back base + difference, or finetuned - difference: the base model moves against the sign.
    sign = -1.0 if sources.combine == "difference" and label == comparison.base else 1.0
    added = sum((a * W_dec[j, columns] for j, a in steering.add.items()), torch.zeros_like(W_dec[0, columns]))
    removed = list(dict.fromkeys(steering.remove))  # a latent named twice is taken away once

    def edit(joined: Tensor) -> Tensor:
        change = added.expand(*joined.shape[:-1], -1)
        if removed:
            acts = comparison.sae.encode(joined.to(W_dec.device))[..., removed]
            change = change - acts.to(W_dec.dtype) @ W_dec[removed][:, columns]
        edited = joined.clone()
        edited[..., columns] += sign * change.to(joined)
        return edited

    return edit


@torch.no_grad()
def generate_side_by_side(
    comparison: ModelComparison,
    tokens: Int[Tensor, "batch pos"],
    steerings: Mapping[str, Steering],
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    seed: int = 0,
) -> dict[str, dict[str, Int[Tensor, "batch n_total"]]]:
    """Both models' continuations of the prompts, by label and by the name of the steering.

    Every continuation draws the same random numbers.

    Args:
        comparison: The models and the crosscoder.
        tokens: Prompts of equal length.
        steerings: What is done to the models; an empty `Steering()` is the model as it is.
        max_new_tokens: Tokens that are added.
        temperature: 0 takes the likeliest token.
        seed: Seed of the draws.

    Raises:
        ConfigError: A latent that there is not, no new token, or a temperature below 0.
    """
    if max_new_tokens < 1 or not 0 <= temperature < math.inf:
        raise ConfigError(
            f"max_new_tokens={max_new_tokens} must be at least 1, and temperature={temperature} a number from 0 on."
        )
    return {
        label: {
            name: comparison.joint.view(label).generate(
                tokens,
                max_new_tokens,
                steering_edit(comparison, label, steering) if steering.add or steering.remove else None,
                temperature,
                torch.Generator().manual_seed(seed),
            )
            for name, steering in steerings.items()
        }
        for label in (comparison.base, comparison.finetuned)
    }
