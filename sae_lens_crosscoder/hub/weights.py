"""A crosscoder of any system as tensors in one form, and the stock SAELens SAE that gives its numbers on raw inputs.

The codes are those of the system itself, not brought into this package's canonical form (per-source decoder norms that
sum to 1): published statistics, dashboards and feature numbers refer to them. Only what the system does to its inputs
and outputs is folded in, so that raw activations go in and raw reconstructions come out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig
from torch import Tensor

from sae_lens_crosscoder.errors import CheckpointError
from sae_lens_crosscoder.joint_model import JOINT_HOOK_NAME
from sae_lens_crosscoder.sources import Sources


@dataclass(frozen=True)
class ReLU:
    """f = max(0, z)."""


@dataclass(frozen=True)
class TopK:
    """F = max(0, z) for the k latents of largest z of every token, 0 for the others."""

    k: int
    """Latents a token."""


@dataclass(frozen=True)
class JumpReLU:
    """f_j = z_j where z_j > threshold_j, 0 elsewhere; thresholds are not negative."""

    thresholds: Float[Tensor, " d_sae"]
    """In the units of the pre-activations z."""


@dataclass(frozen=True)
class InputNormaliser:
    """What a system does to each source's activations before its crosscoder: x~ = (x - mean) * scale.

    Its reconstructions are undone by x^ = x~^ * inverse_scale + mean.
    """

    scales: list[float]
    """One factor for each part of the joint activation."""

    mean: Float[Tensor, " d_in"] | None = None
    """Subtracted first; None is 0."""

    inverse_scales: list[float] | None = None
    """What reconstructions are multiplied by; None is 1 / scale."""


@dataclass(frozen=True)
class CrosscoderWeights:
    """The weights of a crosscoder as its system applies them, sources side by side in the order of `sources`.

    z = (x~ - [b_dec]) W_enc + b_enc, f = activation(z), x~^ = f W_dec + b_dec, where x~ are normalised activations.

    Raises:
        CheckpointError: Sizes that do not fit each other or the sources, or an activation that cannot be.
    """

    W_enc: Float[Tensor, "d_in d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_in"]
    activation: ReLU | TopK | JumpReLU
    sources: Sources
    """Which columns belong to which model; their `activation_scale` is what is in the weights already."""

    normaliser: InputNormaliser | None = None
    """None if the crosscoder takes raw activations."""

    subtracts_b_dec: bool = False
    """Whether b_dec is subtracted before encoding."""

    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    """What else is known of it, for the metadata."""

    def __post_init__(self) -> None:
        if self.sources.d_in != self.W_enc.shape[0]:
            raise CheckpointError(
                f"The sources are {self.sources.d_in} wide together, but the weights are for {self.W_enc.shape[0]}."
            )
        if isinstance(self.activation, TopK) and not 1 <= self.activation.k <= self.b_enc.numel():
            raise CheckpointError(f"k={self.activation.k} is not between 1 and the {self.b_enc.numel()} latents.")
        if isinstance(self.activation, JumpReLU) and not (self.activation.thresholds >= 0).all():
            raise CheckpointError("Some thresholds are negative or NaN, but latents that fire are positive.")

    @torch.no_grad()
    def to_sae(self, device: str = "cpu") -> SAE[Any]:
        """The stock SAELens SAE, in float32, that gives the system's codes and raw reconstructions on raw inputs.

        W_enc <- s W_enc, b_enc <- b_enc - (mean s + [b_dec]) W_enc, W_dec <- W_dec / s, b_dec <- b_dec / s + mean;
        computed in float64.

        Raises:
            CheckpointError: A folded weight is infinite in float32.
        """
        state = self._folded()
        for name, tensor in state.items():
            if not torch.isfinite(tensor).all():
                raise CheckpointError(f"{name} overflows in float32 when the activation scales are folded in.")
        sae = self._without_weights()
        for name, value in self._metadata().items():
            sae.cfg.metadata[name] = value
        sae.load_state_dict(state, assign=True)
        sae.cfg.device = device
        return sae.to(device=device)

    def _folded(self) -> dict[str, Tensor]:
        scales, inverse, mean = self._input_and_output()
        # One matrix after the other: dictionaries of several GB would not fit twice in float64.
        W_enc = self._times(self.W_enc, scales, 0)
        W_dec = self._times(self.W_dec, inverse, 1)
        b_enc, b_dec = self.b_enc.double(), self.b_dec.double()
        if self.subtracts_b_dec:
            b_enc = b_enc - b_dec @ self.W_enc.double()
        b_dec = b_dec * self._by_column(inverse)
        if mean is not None:
            b_enc, b_dec = b_enc - mean @ W_enc.double(), b_dec + mean
        state = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}
        if isinstance(self.activation, JumpReLU):
            state["threshold"] = self.activation.thresholds
        return {name: tensor.float().contiguous() for name, tensor in state.items()}

    def _input_and_output(self) -> tuple[list[float], list[float], Float[Tensor, " d_in"] | None]:
        """The scale before and the factor after the crosscoder, one a part, and the mean."""
        if self.normaliser is None:
            ones = [1.0] * len(self.sources.widths)
            return ones, ones, None
        scales, mean = self.normaliser.scales, self.normaliser.mean
        inverse = self.normaliser.inverse_scales or [1 / scale for scale in scales]
        return scales, inverse, None if mean is None else mean.double()

    def _times(self, weights: Tensor, factors: list[float], dim: int) -> Tensor:
        """The weights times each column's factor, rounded to float32 once."""
        if all(factor == 1 for factor in factors):
            return weights.float()
        columns = self._by_column(factors)
        return (weights.double() * (columns[:, None] if dim == 0 else columns)).float()

    def _by_column(self, factors: list[float]) -> Float[Tensor, " d_in"]:
        return torch.tensor(factors, dtype=torch.float64).repeat_interleave(torch.tensor(self.sources.widths))

    def _without_weights(self) -> SAE[Any]:
        """The SAE, made without memory of its own as SAELens's loader does."""
        d_in, d_sae = self.W_enc.shape
        shared: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, "device": "meta", "apply_b_dec_to_input": False}
        match self.activation:
            case TopK(k):
                return TopKSAE(TopKSAEConfig(**shared, k=k, rescale_acts_by_decoder_norm=False))
            case JumpReLU():
                return JumpReLUSAE(JumpReLUSAEConfig(**shared))
            case ReLU():
                return StandardSAE(StandardSAEConfig(**shared))

    def _metadata(self) -> dict[str, Any]:
        scales, of_parts = self.sources.activation_scales, self._input_and_output()[0]
        # A difference has one part for both of its sources.
        of_sources = of_parts * (len(scales) // len(of_parts))
        scales = [old * new for old, new in zip(scales, of_sources, strict=True)]
        return {
            **self.sources.with_activation_scales(scales).to_metadata(),
            "model_name": self.sources.model_name,
            "hook_name": JOINT_HOOK_NAME,
            **self.facts,
        }
