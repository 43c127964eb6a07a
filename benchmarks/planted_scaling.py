"""Whether latent scaling tells real exclusive latents from invented ones, on planted pairs."""

from __future__ import annotations

import torch
from jaxtyping import Float
from planted_pair import LABELS
from planted_training import PlantedRun
from torch import Tensor

from sae_lens_crosscoder.diffing import latent_scaling

BATCH_SIZE = 2_000


def nu_separation(run: PlantedRun) -> dict[str, float | None]:
    """AUROC of "real" among the exclusive latents by how small each nu is; None without both real and false ones.

    `nu_error` and `nu_reconstruction` are of the other model over the one that the latent is exclusive to, whose
    decoder rows probe; `larger_nu` ranks by the larger of the two. 1 is perfect, 0.5 chance.
    """
    judgement = run.judgement()
    nus = torch.full((2, len(judgement.is_exclusive)), torch.nan, dtype=torch.float64)
    for model, label in enumerate(LABELS):
        scaling = latent_scaling(run.sae, run.tokens[1].split(BATCH_SIZE), label, run.pair.sources)
        claimed = judgement.claims[model]
        nus[:, claimed] = torch.stack([scaling.nu_error, scaling.nu_reconstruction])[:, claimed]
    exclusive, real = judgement.is_exclusive, judgement.is_real[judgement.is_exclusive]
    error, reconstruction = nus[:, exclusive]
    scores = {"nu_error": error, "nu_reconstruction": reconstruction, "larger_nu": torch.maximum(error, reconstruction)}
    return {name: auroc(-score[real], -score[~real]) for name, score in scores.items()}


def auroc(positives: Float[Tensor, " n"], negatives: Float[Tensor, " m"]) -> float | None:
    """Probability that a positive scores above a negative, ties counted half; None if there are not both.

    Undefined scores count as the lowest.
    """
    if len(positives) == 0 or len(negatives) == 0:
        return None
    positives, negatives = positives.nan_to_num(-torch.inf), negatives.nan_to_num(-torch.inf)
    above = (positives[:, None] > negatives).double() + 0.5 * (positives[:, None] == negatives).double()
    return above.mean().item()
