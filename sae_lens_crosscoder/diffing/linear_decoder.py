"""What an SAE needs to offer to be read here, and its decoder as one direction a latent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from sae_lens_crosscoder.diffing.active_latents import ActiveLatents
from sae_lens_crosscoder.errors import ConfigError, ShapeError

_N_OUTPUTS_AT_ONCE = 64
_N_PROBES = 4
_N_CHECKED_TOKENS = 4
_TOLERANCE = 0.03
"""Of the summed sizes of what is added up: far above bfloat16's and TF32's rounding, far below any normalisation."""


@runtime_checkable
class SparseAutoencoder(Protocol):
    """An SAE as SAELens has it; any object with these members will do."""

    @property
    def W_dec(self) -> Tensor:
        """Decoder weights, `(d_sae, d_in)`."""
        ...

    @property
    def cfg(self) -> Any:
        """Its configuration; `cfg.metadata` names the sources unless they are passed."""
        ...

    def encode(self, x: Tensor, /) -> Tensor:
        """Latent activations `(batch, d_sae)` of `(batch, d_in)`."""
        ...

    def decode(self, feature_acts: Tensor, /) -> Tensor:
        """Reconstructions `(batch, d_in)` of latent activations."""
        ...


@dataclass(frozen=True)
class LinearDecoder:
    """What `decode` does to latent activations f, written out: `x_hat = Σ_j f_j directions_j + bias`.

    `LinearDecoder.of` reads it from an SAE. The directions are not always `W_dec`: SAELens's TopK classes divide the
    activations by the decoder norm when they decode (`rescale_acts_by_decoder_norm`).
    """

    directions: Float[Tensor, "d_sae d_in"]
    """What one unit of each latent adds to the reconstruction, in float32 or better."""

    bias: Float[Tensor, " d_in"]
    """The reconstruction when no latent is active."""

    @classmethod
    def of(cls, sae: SparseAutoencoder) -> LinearDecoder:
        """Read an SAE's decoder by its derivative: as much work as encoding `2 d_in` tokens where it is not `W_dec`.

        Raises:
            ConfigError: An SAE that normalises its input at run time, so that what a latent adds depends on the token.
            ShapeError: `decode` gives something other than `(batch, d_in)`.
        """
        normalization = getattr(sae.cfg, "normalize_activations", "none")
        if normalization in ("constant_norm_rescale", "layer_norm"):
            raise ConfigError(
                f"The SAE normalises every token at run time (normalize_activations={normalization!r}), so that a unit "
                "of a latent adds something else to every token, and no direction of it can be compared. Use an SAE "
                "without, or one whose scaling is folded into the weights."
            )
        weights = sae.W_dec.detach()
        d_sae, d_in = weights.shape
        with torch.inference_mode(False), torch.enable_grad():
            # The SAE's own tensor where it is the same, with no second one meanwhile: a decoder may have gigabytes.
            directions = weights if _is_plain(sae) else weights.new_empty(d_sae, d_in)
            for start in range(0, 0 if directions is weights else d_in, _N_OUTPUTS_AT_ONCE):
                columns = directions[:, start : start + _N_OUTPUTS_AT_ONCE]
                outputs = torch.arange(start, start + columns.shape[1], device=weights.device)
                columns.copy_(_pulled_back(sae, one_hot(outputs, d_in).to(weights)).T)
        bias = sae.decode(weights.new_zeros(1, d_sae)).detach()[0]
        dtype = torch.promote_types(weights.dtype, torch.float32)
        return cls(directions.to(dtype), bias.to(dtype))

    def reconstruct(self, active: ActiveLatents) -> Float[Tensor, "n_rows d_in"]:
        """The reconstruction of every token, from its active latents only."""
        return active.weighted_rows(self.directions) + self.bias

    def require_agreement(self, sae: SparseAutoencoder, feature_acts: Float[Tensor, "batch d_sae"]) -> None:
        """Raise if the SAE decodes the first of these activations to something else.

        Raises:
            ConfigError: Its `decode` is not what this decoder says, so it is not linear.
        """
        some = feature_acts[:_N_CHECKED_TOKENS]
        active = ActiveLatents.from_dense(some)
        theirs = sae.decode(some).to(self.directions.dtype)
        allowed = _TOLERANCE * (active.weighted_rows(self.directions.abs()) + self.bias.abs())
        if bool(((theirs - self.reconstruct(active)).abs() > allowed).any()):
            raise ConfigError(
                "The SAE's decode is not linear in the latent activations (or changes from call to call), so that no "
                "latent has a decoder direction of its own to be measured. Remove hooks and run-time normalisation."
            )


def _is_plain(sae: SparseAutoencoder) -> bool:
    """Whether decoding is multiplying by `W_dec`: random outputs are pulled back to the very same numbers.

    Rows that differ are told apart by any of the random outputs but those orthogonal to the difference.
    """
    weights = sae.W_dec.detach()
    generator = torch.Generator("cpu").manual_seed(0)
    probes = torch.randn(_N_PROBES, weights.shape[1], generator=generator, device="cpu").to(weights)
    return torch.equal(_pulled_back(sae, probes), probes @ weights.T)


def _pulled_back(sae: SparseAutoencoder, outputs: Tensor) -> Tensor:
    """What each latent adds along these outputs, `(n_outputs, d_sae)`: their gradient by the activations."""
    silent = outputs.new_zeros(len(outputs), len(sae.W_dec)).requires_grad_()
    decoded = sae.decode(silent)
    if decoded.shape != outputs.shape:
        raise ShapeError(
            f"decode gives {tuple(decoded.shape)} for {len(outputs)} tokens, where {tuple(outputs.shape)} is needed: "
            "turn off the reshaping of heads (sae.turn_off_forward_pass_hook_z_reshaping())."
        )
    (gradient,) = torch.autograd.grad(decoded, silent, outputs)
    return gradient
