"""The standard crosscoder: ReLU, with an L1 penalty weighted by the summed decoder norms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from sae_lens import SAEConfig, StandardSAEConfig
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder._saelens import TrainCoefficientConfig, TrainStepInput
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.training.crosscoder import TrainingCrosscoder, TrainingCrosscoderConfig


@dataclass(kw_only=True)
class StandardTrainingCrosscoderConfig(TrainingCrosscoderConfig):
    """Configuration of `StandardTrainingCrosscoder`.

    Raises:
        ConfigError: A negative penalty or warm-up.
    """

    l1_coefficient: float = 2.0
    """Weight of the sparsity penalty, lambda of Kissane et al.: larger means fewer active latents."""

    l1_warm_up_steps: int | None = None
    """Steps over which the penalty rises from 0; None is 5 % of the run (0 outside a run)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.l1_coefficient < 0 or (self.l1_warm_up_steps or 0) < 0:
            raise ConfigError(
                f"l1_coefficient={self.l1_coefficient} and l1_warm_up_steps={self.l1_warm_up_steps} must be 0 or more."
            )

    @override
    def fill_in_schedule(self, n_steps: int) -> None:
        if self.l1_warm_up_steps is None:
            self.l1_warm_up_steps = int(0.05 * n_steps)

    @override
    @classmethod
    def architecture(cls) -> str:
        return "standard_crosscoder"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return StandardSAEConfig


class StandardTrainingCrosscoder(TrainingCrosscoder[StandardTrainingCrosscoderConfig]):
    """ReLU crosscoder, saved as SAELens's `StandardSAE`.

    loss = E_tokens[ sum over sources |x^s - x_hat^s|^2 ] + lambda(t) E_tokens[ sum over latents f_j c_j ],
    f = ReLU(x W_enc + b_enc), c_j the summed decoder norm, lambda(t) rising linearly over the warm-up. The squared
    error is summed over the columns of all sources, as published (Lindsey et al. 2024; Kissane et al. 2024,
    `trainer.py`). The gradient flows through c_j.
    """

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        warm_up_steps = self.cfg.l1_warm_up_steps or 0
        return {"l1": TrainCoefficientConfig(value=self.cfg.l1_coefficient, warm_up_steps=warm_up_steps)}

    @override
    def encode_with_hidden_pre(
        self, x: Float[Tensor, "... d_in"]
    ) -> tuple[Float[Tensor, "... d_sae"], Float[Tensor, "... d_sae"]]:
        """Latent activations and pre-activations."""
        sae_in = self.process_sae_in(x)
        hidden_pre = self.hook_sae_acts_pre(sae_in @ self.W_enc + self.b_enc)
        return self.hook_sae_acts_post(torch.relu(hidden_pre)), hidden_pre

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        """The weighted L1 penalty."""
        l1 = (feature_acts * self.decoder_norms()).sum(dim=-1).mean()
        return {"l1_loss": step_input.coefficients["l1"] * l1}
