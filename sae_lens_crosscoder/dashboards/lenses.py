"""What latents write into the logits of each model: its decoder slice through its unembedding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

# Where both TransformerLens 2 and 3 have it without a deprecation warning.
from transformer_lens.HookedTransformer import HookedTransformer

from sae_lens_crosscoder._saelens import extract_layer_from_tlens_hook_name
from sae_lens_crosscoder.dashboards.subject import DashboardSubject
from sae_lens_crosscoder.dashboards.token_strings import TokenStrings
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.fingerprint import fingerprint
from sae_lens_crosscoder.hooked_models import HookedModel, unembedding
from sae_lens_crosscoder.sources import Source

_N_LATENTS_AT_ONCE = 32


@dataclass(frozen=True)
class Lens:
    """One source's way from a latent to logits."""

    source: Source
    columns: slice
    """The source's columns of the joint activation; all of them for a difference."""

    directions: Float[Tensor, "d_sae d_source"]
    """What one unit of a latent adds at the source's hook; for a difference, what it adds to the difference."""

    W_U: Float[Tensor, "d_source d_vocab"]
    """From the hook to logits, in float32: without the blocks in between, and without the final norm unless folded."""

    tokens: TokenStrings
    """The strings of this model's own vocabulary."""

    def each_logits(self, latents: Sequence[int]) -> Iterator[Float[Tensor, " d_vocab"]]:
        """What one unit of each latent adds to the logits, latent by latent."""
        # A few at once: the logits of a page of latents over a large vocabulary are more than all else that it holds.
        for some in self.directions[list(latents)].split(_N_LATENTS_AT_ONCE):
            yield from some.to(self.W_U) @ self.W_U

    @cached_property
    def norms(self) -> Float[Tensor, " d_sae"]:
        """Norm of each latent's direction, in the units of training where the source's activation scale is known.

        The relative norm is made of these, as in the report of a diff.
        """
        return self.directions.norm(dim=1) * self.source.activation_scale


def lens_fingerprint(lenses: Sequence[Lens]) -> str:
    """Changes with any model's unembedding or tokenizer."""
    tokens = [lens.tokens.fingerprint(lens.W_U.shape[1]) for lens in lenses]
    return fingerprint({"tokens": tokens}, [lens.W_U.sum(dim=1) for lens in lenses])


@torch.no_grad()
def source_lenses(subject: DashboardSubject, fold_final_norm: bool = False) -> list[Lens]:
    """One lens for each source, in their order.

    Raises:
        ConfigError: A model without an unembedding, or a hook from which there is no way to logits.
    """
    joint = subject.joint
    aligner = joint.aligner
    lenses: list[Lens] = []
    for i, (source, model) in enumerate(zip(joint.sources, joint.source_models, strict=True)):
        columns = joint.sources.columns(source.label)
        own = getattr(model, "tokenizer", None)
        tokenizer = own if aligner is not None and own is not None else joint.tokenizer
        lenses.append(
            Lens(
                source=source,
                columns=columns,
                directions=subject.directions[:, columns],
                W_U=hook_unembedding(source, model, fold_final_norm),
                tokens=lenses[0].tokens if i and tokenizer is lenses[0].tokens.tokenizer else TokenStrings(tokenizer),
            )
        )
    return lenses


@torch.no_grad()
def hook_unembedding(
    source: Source, model: HookedModel, fold_final_norm: bool = False
) -> Float[Tensor, "d_source d_vocab"]:
    """The matrix from a source's hook to its model's logits, in float32.

    On the residual stream it is the unembedding W_U. From the neurons of an MLP (`hook_pre`, `hook_post`) it is W_out
    W_U of their layer, and from the outputs of attention heads (`hook_z`) W_O W_U. Folded, W_U is diag(w) W_U with the
    final norm's weights w, each column centred first if that norm centres; the norm's scaling depends on the token and
    is left out.

    Raises:
        ConfigError: A model without an unembedding, or a hook from which there is no way to logits.
    """
    weights = unembedding(model)
    if weights is None:
        raise ConfigError(
            f"The model {source.model_name!r} of source {source.label!r} has no unembedding (W_U or output "
            "embeddings), so that it cannot be shown which tokens a latent promotes."
        )
    weights = weights.float()
    if fold_final_norm:
        weights = _with_final_norm(source, model, weights)
    # First by the hook's name: the heads' outputs together are often as wide as the residual stream.
    into_residual = _into_residual(source, model)
    if into_residual is not None:
        weights = into_residual.to(weights) @ weights
    if source.d_in != weights.shape[0]:
        raise ConfigError(
            f"Source {source.label!r} reads {source.d_in} numbers at {source.hook_name!r}, and the unembedding of "
            f"{source.model_name!r} takes {weights.shape[0]}: there is no way from this hook to logits. Dashboards can "
            "be made for the residual stream, outputs of attention or MLP, MLP neurons and hook_z."
        )
    return weights


def _into_residual(source: Source, model: HookedModel) -> Tensor | None:
    layer = extract_layer_from_tlens_hook_name(source.hook_name)
    name = source.hook_name.rsplit(".", 1)[-1]
    matrix = {"hook_pre": "W_out", "hook_post": "W_out", "hook_z": "W_O"}.get(name)
    stacked = None if matrix is None else getattr(model, matrix, None)
    if stacked is None or layer is None:
        return None
    return stacked[layer].detach().float().flatten(0, -2)


def _with_final_norm(source: Source, model: HookedModel, weights: Tensor) -> Tensor:
    if not isinstance(model, HookedTransformer):
        raise ConfigError(
            f"fold_final_norm=True needs a HookedTransformer, and the model of source {source.label!r} is loaded as "
            f"{source.model_class_name}: what its final norm multiplies by cannot be told. Leave it out."
        )
    scale = getattr(model.ln_final, "w", None)
    if isinstance(scale, Tensor):
        weights = scale.detach().float()[:, None] * weights
    kind = model.cfg.normalization_type
    return weights if kind is None or kind.startswith("RMS") else weights - weights.mean(dim=0)
