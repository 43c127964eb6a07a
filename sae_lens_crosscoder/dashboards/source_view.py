"""A crosscoder as sae-dashboard reads an SAE: some of its latents, with copies where sae-dashboard writes."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor, nn

from sae_lens_crosscoder._saelens import TopK

_LATENT_AXIS = {"W_enc": 1, "W_dec": 0, "b_enc": 0, "threshold": 0, "b_gate": 0, "r_mag": 0, "b_mag": 0}
_EACH_ALONE = ("standard", "jumprelu", "gated")
"""Architectures in which a latent's activation does not depend on the other latents."""


class SourceView:
    """Some latents of a crosscoder with one source's decoder slice, as the encoder of sae-dashboard's runner.

    The runner folds decoder norms into the encoder that it is given, cuts its weights and puts new parameters in their
    place. Here folding does nothing, and there is nothing of the crosscoder's to cut: latent 0 of the view is the first
    of `latents`, and so on. Where a latent's activation does not depend on others (ReLU, JumpReLU, gated), only
    these latents are encoded, by SAELens's own `encode` on copies of their weights; otherwise (TopK) all are.

    Args:
        sae: The crosscoder. It stays as it is.
        latents: Which of its latents, by index.
        directions: What the runner takes for their decoder rows, in units that suit it.
        skips_zeros: Whether a joint activation that is exactly zero activates nothing: such stand for tokens at which
            nothing was read.
    """

    hook_z_reshaping_mode = False

    def __init__(
        self,
        sae: SAE[Any],
        latents: list[int],
        directions: Float[Tensor, "n_latents _d_source"],
        skips_zeros: bool = False,
    ) -> None:
        self.W_dec = directions
        self.device = sae.W_enc.device
        # Either tells the runner to encode first and to choose latents afterwards: 0.8 looks at the activation
        # function, later versions at the architecture.
        self.activation_fn = TopK(1)
        self.cfg = SimpleNamespace(architecture=lambda: "topk", d_sae=len(latents))
        self._is_narrow = sae.cfg.architecture() in _EACH_ALONE
        self._sae = narrowed(sae, latents) if self._is_narrow else sae
        self._latents = latents
        self._skips_zeros = skips_zeros

    def fold_W_dec_norm(self) -> None:
        """Nothing: activations are shown in the crosscoder's own units."""

    def encode(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows n_latents"]:
        """Activations of the latents."""
        acts = self._sae.encode(x)
        if not self._is_narrow:
            acts = acts[..., self._latents]
        return acts * (x != 0).any(dim=-1, keepdim=True) if self._skips_zeros else acts


@torch.no_grad()
def narrowed(sae: SAE[Any], latents: list[int]) -> SAE[Any]:
    """An SAE of some latents of another, with weights of its own; their activations are the same if each is alone."""
    narrow = copy.copy(sae)
    index = torch.tensor(latents, device=sae.W_enc.device)
    parameters: dict[str, nn.Parameter] = dict(sae.named_parameters(recurse=False))
    for name, axis in _LATENT_AXIS.items():
        if name in parameters:
            parameters[name] = nn.Parameter(parameters[name].index_select(axis, index), requires_grad=False)
    # The copy shares its dictionary of parameters with the original until it gets one of its own.
    vars(narrow)["_parameters"] = parameters
    return narrow
