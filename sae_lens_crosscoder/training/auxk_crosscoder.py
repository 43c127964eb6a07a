"""What the crosscoders that keep the largest codes share: scores, and the loss that revives dead latents."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder._saelens import TrainCoefficientConfig, TrainStepInput
from sae_lens_crosscoder.training.crosscoder import TrainingCrosscoder, TrainingCrosscoderConfig


@dataclass(kw_only=True)
class AuxKTrainingCrosscoderConfig(TrainingCrosscoderConfig, ABC):
    """Configuration of crosscoders that keep the largest codes."""

    aux_loss_coefficient: float = 1 / 32
    """Weight of the loss that lets dead latents explain what the others leave; 0 is off."""


T_AUXK_CONFIG = TypeVar("T_AUXK_CONFIG", bound=AuxKTrainingCrosscoderConfig)


class AuxKTrainingCrosscoder(TrainingCrosscoder[T_AUXK_CONFIG], ABC):
    """Base of the crosscoders that keep the largest codes by score v = p * c, p = ReLU(pre-activation), c the norm.

    AuxK = alpha * s * E_tokens[ |e - e_hat|^2 ] (with `difference_weight` as in the loss), where e is the detached
    residual, e_hat its reconstruction from the top min(d_in / 2, n_dead) dead latents by score, without bias, and
    s = min(n_dead / (d_in / 2), 1) (Gao et al. 2024).
    """

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        return {}

    def scores(
        self, hidden_pre: Float[Tensor, "... d_sae"]
    ) -> tuple[Float[Tensor, "... d_sae"], Float[Tensor, "... d_sae"]]:
        """The positive codes p, with gradient, and the scores v that select among them, without."""
        acts = torch.relu(hidden_pre)
        return acts, (acts * self.decoder_norms()).detach()

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        """The AuxK loss on dead latents; 0 when none is dead."""
        dead = step_input.dead_neuron_mask
        n_dead = 0 if dead is None else int(dead.sum())
        if dead is None or n_dead == 0 or self.cfg.aux_loss_coefficient == 0:
            return {"auxiliary_reconstruction_loss": sae_out.new_tensor(0.0)}
        residual = (step_input.sae_in - sae_out).detach()
        k_aux = min(self.cfg.d_in // 2, n_dead)
        acts = torch.relu(hidden_pre[:, dead])
        top = (acts * self.decoder_norms()[dead]).detach().topk(k_aux, sorted=False).indices
        codes = torch.zeros_like(acts).scatter(-1, top, acts.gather(-1, top))
        error = self.mse_loss_fn(codes @ self.W_dec[dead], residual).sum(dim=-1).mean()
        scale = min(n_dead / (self.cfg.d_in // 2), 1.0)
        return {"auxiliary_reconstruction_loss": self.cfg.aux_loss_coefficient * scale * error}
