"""A step's figures of all ranks together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sae_lens_crosscoder._saelens import TrainStepOutput
from sae_lens_crosscoder.training.parallel.division import Division

_SUMS_OF_LATENTS = ("metrics/l0", "sparsity/dead_features")
_MEANS_OF_LATENTS = ("sparsity/mean_passes_since_fired",)
_MEANS_OF_TOKENS = ("metrics/l0",)


def whole_output(output: TrainStepOutput, division: Division) -> TrainStepOutput:
    """A step's output with activations, reconstructions and losses of the whole batch; the codes are this rank's."""
    if not division.splits_tokens:
        return output
    ranks = division.ranks

    def mean(loss: Tensor) -> Tensor:
        return ranks.sum(loss.detach()) / ranks.n

    return replace(
        output,
        sae_in=torch.cat(ranks.gather(output.sae_in)),
        sae_out=torch.cat(ranks.gather(output.sae_out.detach())),
        loss=mean(output.loss),
        losses={name: mean(loss) for name, loss in output.losses.items()},
    )


def complete_row(row: dict[str, Any], division: Division) -> None:
    """Replace what a row of the curve says of this rank's codes by what is so of all, in place."""
    names = _MEANS_OF_TOKENS if division.splits_tokens else (*_SUMS_OF_LATENTS, *_MEANS_OF_LATENTS)
    if not division.is_divided:
        return
    device = "cuda" if torch.cuda.is_available() and torch.distributed.get_backend() == "nccl" else "cpu"
    here = torch.tensor([row[name] for name in names], dtype=torch.float64, device=device)
    for name, total in zip(names, division.ranks.sum(here).tolist(), strict=True):
        is_sum = division.splits_latents and name in _SUMS_OF_LATENTS
        row[name] = total if is_sum else total / division.ranks.n
