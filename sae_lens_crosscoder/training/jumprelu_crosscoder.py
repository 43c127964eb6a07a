"""The JumpReLU crosscoder, with Anthropic's tanh penalty or the L0 penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from sae_lens import JumpReLUSAEConfig, SAEConfig
from torch import Tensor, nn
from typing_extensions import override

from sae_lens_crosscoder._saelens import JumpReLU, Step, TrainCoefficientConfig, TrainStepInput, TrainStepOutput
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.training.crosscoder import CANONICAL_NORMS
from sae_lens_crosscoder.training.penalised_crosscoder import (
    PenalisedTrainingCrosscoder,
    PenalisedTrainingCrosscoderConfig,
)
from sae_lens_crosscoder.training.sparse import forward
from sae_lens_crosscoder.training.sparse.autograd import encode_pairs
from sae_lens_crosscoder.training.sparse.pairs import ActivePairs
from sae_lens_crosscoder.training.sparse.selection import positive_pairs

SparsityLoss = Literal["tanh", "step"]


@dataclass(kw_only=True)
class JumpReLUTrainingCrosscoderConfig(PenalisedTrainingCrosscoderConfig):
    """Configuration of `JumpReLUTrainingCrosscoder`; defaults are those of crosscode's January 2025 crosscoder.

    Raises:
        ConfigError: An unknown penalty, a negative weight or warm-up, a bandwidth or slope that is not positive, or a
            firing rate outside (0, 1).
    """

    schedule_fields: ClassVar[tuple[str, ...]] = ("l0_warm_up_steps",)

    sparsity_loss: SparsityLoss = "tanh"
    """"tanh" is Anthropic's penalty of January 2025, "step" the number of active latents (DeepMind)."""

    l0_coefficient: float = 20.0
    """Weight of the penalty, lambda_S."""

    l0_warm_up_steps: int | None = None
    """Steps over which the penalty rises from 0; None is the whole run (0 outside a run)."""

    tanh_scale: float = 4.0
    """Slope c of the tanh penalty."""

    pre_act_loss_coefficient: float = 3e-6
    """Weight lambda_P of the penalty that pulls silent latents towards their threshold; 0 is off."""

    jumprelu_bandwidth: float = 2.0
    """Width of the window around a threshold in which pre-activations give it a gradient."""

    jumprelu_init_log_threshold: float = 0.1
    """Logarithm of every threshold at the start."""

    b_enc_firing_rate: float | None = None
    """Share of tokens on which a latent fires at the start, by its encoder bias; None is min(10,000 / d_sae, 0.5)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparsity_loss not in get_args(SparsityLoss):
            raise ConfigError(f"sparsity_loss={self.sparsity_loss!r} is unknown. Use one of tanh, step.")
        for name in ("jumprelu_bandwidth", "tanh_scale"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be positive.")
        for name in ("l0_coefficient", "pre_act_loss_coefficient", "l0_warm_up_steps"):
            if not (getattr(self, name) or 0) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be 0 or more.")
        if not 0 < self.initial_firing_rate < 1:
            raise ConfigError(f"b_enc_firing_rate={self.b_enc_firing_rate} must lie between 0 and 1.")

    @property
    def initial_firing_rate(self) -> float:
        """Share of tokens on which each latent fires at the start."""
        return min(10_000 / self.d_sae, 0.5) if self.b_enc_firing_rate is None else self.b_enc_firing_rate

    @property
    @override
    def starts_from_data(self) -> bool:
        return True

    @override
    def fill_in_schedule(self, n_steps: int) -> None:
        if self.l0_warm_up_steps is None:
            self.l0_warm_up_steps = n_steps

    @override
    @classmethod
    def architecture(cls) -> str:
        return "jumprelu_crosscoder"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return JumpReLUSAEConfig


class JumpReLUTrainingCrosscoder(PenalisedTrainingCrosscoder[JumpReLUTrainingCrosscoderConfig]):
    """JumpReLU crosscoder, saved as SAELens's `JumpReLUSAE`.

    f_j = z_j 1[z_j > theta_j], theta_j = exp(t_j), z = x W_enc + b_enc, and

    loss = E[ sum over sources |x^s - x_hat^s|^2 ] + lambda_S(t) E[ sum_j tanh(c f_j n_j) ]
           + lambda_P E[ sum_j ReLU(theta_j - z_j) n_j ]

    with n_j the decoder norm (Anthropic, January 2025 update). The last term takes *pre*-activations, so that silent
    latents have a gradient. Thresholds learn by the straight-through estimator df/dtheta = -(theta/eps) 1[|z - theta| <
    eps/2]; t_j is what is trained, so its gradient carries the factor theta_j. With `sparsity_loss="step"` the second
    term is the number of active latents, with the same kind of estimator (Rajamanoharan et al. 2024).

    Only pairs of a token and a latent with z_j > theta_j - eps/2 have a code or move a threshold. Once they are few, a
    training step is made on them alone, with the losses and gradients of the dense step. The last term reaches all
    silent pairs, but linearly: sum_i ReLU(theta_j - z_ij) = sum_i (theta_j - z_ij) + sum over pairs not below theta_j
    of (z_ij - theta_j), and the first of these sums is that of the mean token.
    """

    log_threshold: nn.Parameter

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        start = torch.full((self.cfg.d_sae,), self.cfg.jumprelu_init_log_threshold)
        self.log_threshold = nn.Parameter(start.to(dtype=self.dtype, device=self.device))

    @override
    @torch.no_grad()
    def initialize_from_data(self, sae_in: Float[Tensor, "batch d_in"]) -> None:
        """Also set every encoder bias so that its latent fires on `initial_firing_rate` of the batch."""
        super().initialize_from_data(sae_in)
        hidden_pre = self.process_sae_in(sae_in) @ self.W_enc
        n_above = max(1, round(self.cfg.initial_firing_rate * len(hidden_pre)))
        boundary = hidden_pre.float().topk(n_above, dim=0).values[-1]
        self.b_enc.copy_(self.log_threshold.exp() - boundary.to(self.dtype))

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        return {"l0": TrainCoefficientConfig(self.cfg.l0_coefficient, self.cfg.l0_warm_up_steps or 0)}

    @override
    def encode_with_hidden_pre(
        self, x: Float[Tensor, "... d_in"]
    ) -> tuple[Float[Tensor, "... d_sae"], Float[Tensor, "... d_sae"]]:
        """Latent activations and pre-activations."""
        hidden_pre = self.pre_activations(x)
        feature_acts = JumpReLU.apply(hidden_pre, self._thresholds(hidden_pre), self.cfg.jumprelu_bandwidth, False)
        return self.hook_sae_acts_post(feature_acts), hidden_pre

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One step's loss; made on the pairs that reach the window about their threshold, once they are few."""
        if forward.dense_reason(self, step_input.sae_in) is not None:
            return super().training_forward_pass(step_input)
        x = self.process_sae_in(step_input.sae_in)
        with torch.no_grad():
            below = self._thresholds(x) - self.cfg.jumprelu_bandwidth / 2
            encoder = forward.encoder_of(self, x, torch.ones_like(self.b_enc), self.b_enc - below)
            found = positive_pairs(encoder, forward.MAX_ACTIVE_SHARE)
        if found is None:
            return super().training_forward_pass(step_input)
        self.hold_layout()
        pairs = ActivePairs(found.flat, len(x), len(self.W_dec))
        values = found.acts + below[pairs.latents]
        hidden_pre = encode_pairs(pairs, values, x, self.W_enc, self.b_enc, self.gradient_memory)
        thresholds = self._thresholds(x).index_select(0, pairs.latents)
        # As one row of latents: SAELens's estimators add up the gradients of thresholds over rows.
        acts = JumpReLU.apply(hidden_pre[None], thresholds, self.cfg.jumprelu_bandwidth, False)[0]
        codes = forward.SparseCodes(pairs, acts)
        return forward.sparse_output(
            self, step_input, codes, lambda _: self._losses_of_pairs(step_input, codes, hidden_pre, thresholds, x)
        )

    def _losses_of_pairs(
        self,
        step_input: TrainStepInput,
        codes: forward.SparseCodes,
        hidden_pre: Float[Tensor, " n_pairs"],
        thresholds: Float[Tensor, " n_pairs"],
        x: Float[Tensor, "batch d_in"],
    ) -> dict[str, Tensor]:
        norms, latents = self.decoder_norms(), codes.pairs.latents
        if self.cfg.sparsity_loss == "tanh":
            active = torch.tanh(self.cfg.tanh_scale * codes.acts * norms.index_select(0, latents))
        else:
            active = Step.apply(hidden_pre[None], thresholds, self.cfg.jumprelu_bandwidth, False)[0]
        sums = torch.zeros_like(self.b_enc)
        losses = {
            "l0_loss": step_input.coefficients["l0"] * self.penalty_of_sums(sums.index_add(0, latents, active), len(x))
        }
        if self.cfg.pre_act_loss_coefficient:
            # Not ReLU: on the threshold itself the silent pairs' penalty has no gradient, so all of it is taken off.
            excess = torch.where(hidden_pre >= thresholds, hidden_pre - thresholds, 0.0)
            mean = self._thresholds(x) - (x.mean(dim=0) @ self.W_enc + self.b_enc)
            below = mean + sums.index_add(0, latents, excess) / len(x)
            below = self.division.sum_of_latents((below * norms).sum())
            losses["pre_act_loss"] = self.cfg.pre_act_loss_coefficient * below
        return losses

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Tensor,
        hidden_pre: Tensor,
        sae_out: Tensor,
    ) -> dict[str, Tensor]:
        """The sparsity penalty and the pre-activation penalty."""
        norms, thresholds = self.decoder_norms(), self._thresholds(hidden_pre)
        if self.cfg.sparsity_loss == "tanh":
            active = torch.tanh(self.cfg.tanh_scale * feature_acts * norms)
        else:
            active = Step.apply(hidden_pre, thresholds, self.cfg.jumprelu_bandwidth, False)
        losses = {"l0_loss": step_input.coefficients["l0"] * self.penalty(active)}
        if self.cfg.pre_act_loss_coefficient:
            below = self.division.sum_of_latents((torch.relu(thresholds - hidden_pre) * norms).sum(dim=-1).mean())
            losses["pre_act_loss"] = self.cfg.pre_act_loss_coefficient * below
        return losses

    def _thresholds(self, like: Tensor) -> Float[Tensor, " d_sae"]:
        return self.log_threshold.exp().to(like.dtype)

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        """Canonical form, with thresholds in its units."""
        super().process_state_dict_for_saving_inference(state_dict)
        state_dict["threshold"] = state_dict.pop("log_threshold").exp() * self.canonical_norms()

    @override
    def process_state_dict_from_inference(self, state_dict: dict[str, Tensor], left_out: dict[str, Tensor]) -> None:
        """Undo the canonical form, thresholds too."""
        super().process_state_dict_from_inference(state_dict, left_out)
        state_dict["log_threshold"] = (state_dict.pop("threshold") / left_out[CANONICAL_NORMS]).log()
