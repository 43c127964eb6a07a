"""The weights of a crosscoder that is trained on several ranks: their division, and their gradients."""

from __future__ import annotations

from torch import Tensor, nn

from sae_lens_crosscoder.training.crosscoder import T_TRAINING_CROSSCODER_CONFIG, TrainingCrosscoder
from sae_lens_crosscoder.training.parallel.division import Division

_OF_ALL_LATENTS = "b_dec"  # the one weight that does not belong to latents


def divide(sae: TrainingCrosscoder[T_TRAINING_CROSSCODER_CONFIG], division: Division) -> None:
    """Let a crosscoder train as one of several ranks: it keeps only this rank's latents, if latents are divided."""
    shard = division.shard(sae.cfg.d_sae)
    for name, weights in list(sae.named_parameters()):
        if name == "W_enc":
            sae.W_enc = nn.Parameter(weights.data[:, shard.slice].T.clone().T)
        elif name != _OF_ALL_LATENTS:
            setattr(sae, name, nn.Parameter(weights.data[shard.slice].clone()))
    sae.division, sae.layout = division, sae.cfg.layout.part(shard)


def complete_gradients(sae: TrainingCrosscoder[T_TRAINING_CROSSCODER_CONFIG]) -> Tensor:
    """Make the gradients of this rank's tokens those of the whole batch; the norm of those of all ranks together."""
    sae.division.average_gradients(list(sae.parameters()))
    gradients = {name: weights.grad for name, weights in sae.named_parameters() if weights.grad is not None}
    of_all = [gradient for name, gradient in gradients.items() if name == _OF_ALL_LATENTS]
    return sae.division.gradient_norm([g for name, g in gradients.items() if name != _OF_ALL_LATENTS], of_all)
