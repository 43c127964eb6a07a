"""What the crosscoders that keep the largest codes share: scores, and the loss that revives dead latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder._saelens import TrainCoefficientConfig, TrainStepInput, TrainStepOutput
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.training.crosscoder import TrainingCrosscoder, TrainingCrosscoderConfig
from sae_lens_crosscoder.training.sparse.encoder import ScoredPairs
from sae_lens_crosscoder.training.sparse.forward import SparseCodes, dense_reason, encoder_of, sparse_output
from sae_lens_crosscoder.training.sparse.selection import AnyEncoder
from sae_lens_crosscoder.training.sparse.ties import positions_of_largest


@dataclass(kw_only=True)
class AuxKTrainingCrosscoderConfig(TrainingCrosscoderConfig, ABC):
    """Configuration of crosscoders that keep the largest codes.

    Raises:
        ConfigError: A negative `aux_loss_coefficient`.
    """

    aux_loss_coefficient: float = 1 / 32
    """Weight of the loss that lets dead latents explain what the others leave; 0 is off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.aux_loss_coefficient >= 0:
            raise ConfigError(f"aux_loss_coefficient={self.aux_loss_coefficient} must be 0 or more.")


T_AUXK_CONFIG = TypeVar("T_AUXK_CONFIG", bound=AuxKTrainingCrosscoderConfig)


class AuxKTrainingCrosscoder(TrainingCrosscoder[T_AUXK_CONFIG], ABC):
    """Base of the crosscoders that keep the largest codes by score v = p * c, p = ReLU(pre-activation), c the norm.

    AuxK = alpha * s * E_tokens[ |e - e_hat|^2 ] (with `difference_weight` as in the loss), where e is the detached
    residual, e_hat its reconstruction from the top min(d_in / 2, n_dead) dead latents by score, without bias, and
    s = min(n_dead / (d_in / 2), 1) (Gao et al. 2024).

    A training step is made on the active pairs of token and latent alone where that is possible and pays
    (`sparse/forward.py`, `dense_reason`). It gives the losses and gradients of the dense step up to rounding, and
    `feature_acts` as a sparse tensor.
    """

    prefix_widths: Sequence[int] = ()
    """Numbers of first latents that are to reconstruct the activations too."""

    n_dead_bound: int | None = None
    """No more latents are dead in this step. With it, AuxK has shapes that the host knows; None counts the dead."""

    @property
    @abstractmethod
    def k_now(self) -> float:
        """Active latents a token in this step."""

    @abstractmethod
    def largest_pairs(self, encoder: AnyEncoder) -> ScoredPairs:
        """The pairs of a batch that stay."""

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One step's loss."""
        self.hold_layout()
        if dense_reason(self, step_input.sae_in, self.k_now / self.cfg.d_sae) is not None:
            return super().training_forward_pass(step_input)
        x = self.process_sae_in(step_input.sae_in)
        with torch.no_grad():
            found = self.largest_pairs(encoder_of(self, x, self.decoder_norms()))
        return sparse_output(
            self,
            step_input,
            SparseCodes.of(self, x, found),
            lambda sae_out: self._aux_losses(
                step_input, sae_out, lambda dead: x @ self.W_enc.T[dead].T + self.b_enc[dead]
            ),
            self.prefix_widths,
        )

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
        return self._aux_losses(step_input, sae_out, lambda dead: hidden_pre[:, dead])

    def _aux_losses(
        self, step_input: TrainStepInput, sae_out: Tensor, hidden_pre_of: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        dead = step_input.dead_neuron_mask
        if dead is None or self.cfg.aux_loss_coefficient == 0:
            return {"auxiliary_reconstruction_loss": sae_out.new_zeros(())}
        n_dead = self.division.sum_of_latents(dead.sum())
        bound = self.n_dead_bound
        n_here, n_all = (int(dead.sum()), int(n_dead)) if bound is None else (bound, bound)
        if n_all == 0:
            return {"auxiliary_reconstruction_loss": sae_out.new_zeros(())}
        residual = (step_input.sae_in - sae_out).detach()
        # The dead latents, then, if the bound is above their number, others, whose codes are set to 0.
        revived = positions_of_largest(dead.to(sae_out.dtype), n_here)
        acts = torch.relu(hidden_pre_of(revived)) * dead[revived]
        k_aux = min(self.cfg.d_in // 2, n_all)
        if k_aux < n_all:
            acts = acts * self._largest_dead((acts * self.decoder_norms()[revived]).detach(), k_aux)
        error = self.mse_loss_fn(self.division.sum_of_latents(acts @ self.W_dec[revived]), residual).sum(dim=-1).mean()
        scale = (n_dead.to(error.dtype) / (self.cfg.d_in // 2)).clamp(max=1)
        return {"auxiliary_reconstruction_loss": self.cfg.aux_loss_coefficient * scale * error}

    def _largest_dead(self, scores: Tensor, k: int) -> Tensor:
        """Where the k largest scores of every token stand."""
        if self.division.splits_latents:
            return self.division.largest_of_rows(scores, k)
        # No rule for ties, for which CUDA would wait.
        return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, scores.topk(k, sorted=False).indices, True)
