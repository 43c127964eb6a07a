"""The standard crosscoder: ReLU, with an L1 penalty weighted by the summed decoder norms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from sae_lens import SAEConfig, StandardSAEConfig
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder._saelens import TrainStepInput, TrainStepOutput
from sae_lens_crosscoder.training.l1_crosscoder import L1TrainingCrosscoder, L1TrainingCrosscoderConfig
from sae_lens_crosscoder.training.sparse import forward
from sae_lens_crosscoder.training.sparse.selection import positive_pairs


@dataclass(kw_only=True)
class StandardTrainingCrosscoderConfig(L1TrainingCrosscoderConfig):
    """Configuration of `StandardTrainingCrosscoder`."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "standard_crosscoder"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return StandardSAEConfig


class StandardTrainingCrosscoder(L1TrainingCrosscoder[StandardTrainingCrosscoderConfig]):
    """ReLU crosscoder, saved as SAELens's `StandardSAE`.

    loss = E_tokens[ sum over sources |x^s - x_hat^s|^2 ] + lambda(t) E_tokens[ sum over latents f_j c_j ],
    f = ReLU(x W_enc + b_enc), c_j the summed decoder norm, lambda(t) rising linearly over the warm-up. The squared
    error is summed over the columns of all sources, as published (Lindsey et al. 2024; Kissane et al. 2024,
    `trainer.py`). The gradient flows through c_j.
    """

    @override
    def encode_with_hidden_pre(
        self, x: Float[Tensor, "... d_in"]
    ) -> tuple[Float[Tensor, "... d_sae"], Float[Tensor, "... d_sae"]]:
        """Latent activations and pre-activations."""
        hidden_pre = self.pre_activations(x)
        return self.hook_sae_acts_post(torch.relu(hidden_pre)), hidden_pre

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One step's loss; made on the active pairs of token and latent alone once they are few."""
        if forward.dense_reason(self, step_input.sae_in) is not None:
            return super().training_forward_pass(step_input)
        x = self.process_sae_in(step_input.sae_in)
        with torch.no_grad():
            encoder = forward.encoder_of(self, x, torch.ones_like(self.b_enc))
            found = positive_pairs(encoder, forward.MAX_ACTIVE_SHARE)
        if found is None:
            return super().training_forward_pass(step_input)
        self.hold_layout()
        codes = forward.SparseCodes.of(self, x, found)
        sums = torch.zeros_like(self.b_enc).index_add(0, codes.pairs.latents, codes.acts)
        return forward.sparse_output(self, step_input, codes, lambda _: self._aux_losses(step_input, sums))

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        """The weighted L1 penalty."""
        return self._aux_losses(step_input, feature_acts.sum(dim=0))

    def _aux_losses(self, step_input: TrainStepInput, sums: Float[Tensor, " d_sae"]) -> dict[str, Tensor]:
        # The norm is a factor of each latent's sum: no matrix of weighted codes is made.
        l1 = self.penalty_of_sums(sums * self.decoder_norms(), len(step_input.sae_in))
        return {"l1_loss": step_input.coefficients["l1"] * l1}
