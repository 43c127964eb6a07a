"""The weights of a crosscoder that is trained on several ranks: divided, put together, and their gradients."""

from __future__ import annotations

import copy
from typing import cast

import torch
from sae_lens import TrainingSAE
from torch import Tensor, nn

from sae_lens_crosscoder.ranks import Ranks
from sae_lens_crosscoder.training.crosscoder import T_TRAINING_CROSSCODER_CONFIG, TrainingCrosscoder
from sae_lens_crosscoder.training.parallel.division import Division
from sae_lens_crosscoder.training.parallel.latent_shard import LatentShard

_OF_ALL_LATENTS = "b_dec"  # the one weight that does not belong to latents
_PIECE = 1 << 24  # numbers that are gathered at once


def divide(sae: TrainingCrosscoder[T_TRAINING_CROSSCODER_CONFIG], division: Division) -> None:
    """Let a crosscoder train as one of several ranks, with the weights of the first.

    It keeps only this rank's latents, if latents are divided.
    """
    shard = division.shard(sae.cfg.d_sae)
    for name, weights in list(sae.named_parameters()):
        division.ranks.copy_first(weights.data)
        setattr(sae, name, nn.Parameter(own_part(weights.data, name, shard)))
    sae.division, sae.layout = division, sae.cfg.layout.part(shard)


def complete_gradients(sae: TrainingCrosscoder[T_TRAINING_CROSSCODER_CONFIG]) -> Tensor:
    """Make the gradients of this rank's tokens those of the whole batch; the norm of those of all ranks together."""
    sae.division.average_gradients(list(sae.parameters()))
    gradients = {name: weights.grad for name, weights in sae.named_parameters() if weights.grad is not None}
    of_all = [gradient for name, gradient in gradients.items() if name == _OF_ALL_LATENTS]
    return sae.division.gradient_norm([g for name, g in gradients.items() if name != _OF_ALL_LATENTS], of_all)


def own_part(whole: Tensor, name: str, shard: LatentShard) -> Tensor:
    """A rank's part of a weight, or of what Adam keeps of it, in the weight's order of memory."""
    if name == _OF_ALL_LATENTS or whole.ndim == 0:
        return whole.clone()
    return whole[:, shard.slice].T.clone().T if name == "W_enc" else whole[shard.slice].clone()


def gathered(part: Tensor, name: str, ranks: Ranks) -> Tensor:
    """A whole weight, or what Adam keeps of it, on the first rank's CPU; on the others what they have.

    It is gathered in pieces, so that no GPU has to hold it.
    """
    if name == _OF_ALL_LATENTS or part.ndim == 0:
        return part.detach().cpu()
    if name == "W_enc":
        return gathered(part.T, "", ranks).T
    here = part.detach().contiguous()
    whole = torch.empty(len(here) * ranks.n, *here.shape[1:], dtype=here.dtype) if ranks.is_first else here
    n_rows = max(1, _PIECE // max(1, here[:1].numel()))
    for start in range(0, len(here), n_rows):
        for rank, piece in enumerate(ranks.gather(here[start : start + n_rows])):
            if ranks.is_first:
                at = rank * len(here) + start
                whole[at : at + len(piece)] = piece.cpu()
    return whole


def whole_crosscoder(
    sae: TrainingCrosscoder[T_TRAINING_CROSSCODER_CONFIG],
) -> TrainingCrosscoder[T_TRAINING_CROSSCODER_CONFIG]:
    """The crosscoder of all ranks, on the first rank's CPU; on the others, and if latents are not divided, itself."""
    if not sae.division.splits_latents:
        return sae
    state = {name: gathered(weights, name, sae.division.ranks) for name, weights in sae.named_parameters()}
    if not sae.division.ranks.is_first:
        return sae
    cfg = copy.deepcopy(sae.cfg)
    cfg.device = "cpu"
    whole = cast("TrainingCrosscoder[T_TRAINING_CROSSCODER_CONFIG]", TrainingSAE.from_dict(cfg.to_dict()))
    whole.load_state_dict({**{name: buffer.cpu() for name, buffer in sae.named_buffers()}, **state})
    whole.cfg = sae.cfg
    return whole.train(sae.training)
