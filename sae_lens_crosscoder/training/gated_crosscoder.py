"""The Gated crosscoder: one path decides which latents are active, another how strongly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from sae_lens import GatedSAEConfig, SAEConfig
from torch import Tensor, nn
from typing_extensions import override

from sae_lens_crosscoder._saelens import TrainStepInput
from sae_lens_crosscoder.training.l1_crosscoder import L1TrainingCrosscoder, L1TrainingCrosscoderConfig


@dataclass(kw_only=True)
class GatedTrainingCrosscoderConfig(L1TrainingCrosscoderConfig):
    """Configuration of `GatedTrainingCrosscoder`."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "gated_crosscoder"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return GatedSAEConfig


class GatedTrainingCrosscoder(L1TrainingCrosscoder[GatedTrainingCrosscoderConfig]):
    """Gated crosscoder, saved as SAELens's `GatedSAE`.

    With gates g = x W_enc + b_gate and magnitudes m = ReLU(x (W_enc e^r_mag) + b_mag), codes are f = 1[g > 0] m and

    loss = E[ sum over sources |x^s - x_hat^s|^2 ] + lambda(t) E[ sum_j ReLU(g_j) c_j ] + E[ |x - x_hat(ReLU(g))|^2 ],

    the last with the decoder held fixed (Rajamanoharan et al. 2024; c_j is the decoder norm, here summed over sources).
    The penalty acts on gates only, so that it does not shrink the codes. c_j is held fixed too: the gates'
    reconstruction does not pull on the decoder, which would lower the penalty for nothing by shrinking, while r_mag
    makes up for it in the codes.
    """

    encoder_bias_names: ClassVar[tuple[str, ...]] = ("b_gate", "b_mag")

    b_gate: nn.Parameter
    b_mag: nn.Parameter
    r_mag: nn.Parameter

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.r_mag = nn.Parameter(torch.zeros(self.cfg.d_sae, dtype=self.dtype, device=self.device))

    @override
    def encode_with_hidden_pre(
        self, x: Float[Tensor, "... d_in"]
    ) -> tuple[Float[Tensor, "... d_sae"], Float[Tensor, "... d_sae"]]:
        """Latent activations and the gates' pre-activations."""
        projected = self.process_sae_in(x) @ self.W_enc
        gates = projected + self.b_gate
        magnitudes = self.hook_sae_acts_pre(projected * self.r_mag.exp() + self.b_mag)
        return self.hook_sae_acts_post((gates > 0).to(self.dtype) * torch.relu(magnitudes)), gates

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        """The penalty on the gates and the reconstruction from them."""
        open_gates = torch.relu(hidden_pre)
        l1 = self.penalty(open_gates * self.decoder_norms().detach())
        from_gates = self.division.sum_of_latents(open_gates @ self.W_dec.detach()) + self.b_dec.detach()
        return {
            "l1_loss": step_input.coefficients["l1"] * l1,
            "auxiliary_reconstruction_loss": self.mse_loss_fn(from_gates, step_input.sae_in).sum(dim=-1).mean(),
        }
