"""Two models and their crosscoder, as causal questions see them: what passes the hook, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from sae_lens_crosscoder.errors import ShapeError, SourceError
from sae_lens_crosscoder.generation import replacing
from sae_lens_crosscoder.hooked_models import input_device
from sae_lens_crosscoder.joint_model import JointModel


@dataclass(frozen=True)
class PairedRun:
    """What passed the hooks of both models for the same tokens."""

    tokens: Int[Tensor, "batch pos"]
    base: Float[Tensor, "batch pos d_source"]
    """Activation of the base model."""

    finetuned: Float[Tensor, "batch pos d_source"]
    """Activation of the fine-tuned model."""

    feature_acts: Float[Tensor, "batch pos d_sae"]
    """Latent activations."""


class ModelComparison:
    """A base model, a fine-tuned model and their crosscoder, run and rerun from the hook.

    A latent's *contribution to the difference* is f_j delta_j with delta_j = d_j^finetuned - d_j^base, or the decoder
    row itself for an SAE on the difference: adding all of them to the base model's activation gives the fine-tuned
    model's, up to the crosscoder's error.

    Args:
        joint: The joint model.
        sae: Its crosscoder, on raw joint activations.
        base: Label of the base model; the first source by default.
        finetuned: Label of the fine-tuned model; the second source by default.

    Raises:
        SourceError: Models with tokens of their own, a label that no source has, more than two sources and no labels,
            or a difference taken the other way.
        ShapeError: Two sources of different width, whose activations cannot be exchanged.
    """

    def __init__(self, joint: JointModel, sae: SAE[Any], base: str | None = None, finetuned: str | None = None) -> None:
        sources = joint.sources
        if sources.token_alignment != "same_ids":
            raise SourceError(
                "The models read tokens of their own (token_alignment='character_offsets'), so that one's activations "
                "cannot be put into the other at every token. Causal comparisons need models that share a vocabulary."
            )
        if len(sources) != 2 and (base is None or finetuned is None):
            raise SourceError(
                f"The joint model has {len(sources)} sources ({', '.join(sources.labels)}). Name the base and the "
                "fine-tuned one."
            )
        self.base = sources.labels[0] if base is None else base
        self.finetuned = sources.labels[1] if finetuned is None else finetuned
        widths = [sources[sources.position(label)].d_in for label in (self.base, self.finetuned)]
        if widths[0] != widths[1]:
            raise ShapeError(
                f"{self.base!r} is {widths[0]} wide and {self.finetuned!r} {widths[1]}: activations of one cannot be "
                "put into the other."
            )
        if sources.combine == "difference" and [self.base, self.finetuned] != sources.labels:
            raise SourceError(
                f"The SAE is trained on {sources.labels[1]!r} minus {sources.labels[0]!r}, so that the base is "
                f"{sources.labels[0]!r}, not {self.base!r}."
            )
        self.joint = joint
        self.sae = sae

    def decoder(self, label: str) -> Float[Tensor, "d_sae d_source"]:
        """The decoder rows of one model; for a difference, those of the difference."""
        return self.sae.W_dec.detach()[:, self.joint.sources.columns(label)]

    @property
    def directions(self) -> Float[Tensor, "d_sae d_source"]:
        """delta_j, what a latent adds to the difference of the two models per unit of activation."""
        if self.joint.sources.combine == "difference":
            return self.decoder(self.finetuned)
        return self.decoder(self.finetuned) - self.decoder(self.base)

    @torch.no_grad()
    def run(self, tokens: Int[Tensor, "batch pos"]) -> PairedRun:
        """Both models up to their hooks, and the latents."""
        activations = self.joint.source_activations(tokens)
        joined = self.joint.join(activations)
        here = [
            activations[self.joint.sources.position(label)].to(self.sae.device) for label in (self.base, self.finetuned)
        ]
        return PairedRun(tokens, here[0], here[1], self.sae.encode(joined.to(self.sae.device)))

    def continued(
        self, label: str, tokens: Int[Tensor, "batch pos"], activation: Float[Tensor, "batch pos d_source"]
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Log-probabilities of one model's next tokens, continued from an activation at its hook, with gradient."""
        source = self.joint.sources[self.joint.sources.position(label)]
        model = self.joint.view(label).source_model
        hook = (source.hook_name, replacing(activation))
        logits = model.run_with_hooks(tokens.to(input_device(model)), return_type="logits", fwd_hooks=[hook])
        return _log_probabilities(logits)

    def contribution(
        self, feature_acts: Float[Tensor, "batch pos d_sae"], latents: Sequence[int] | Int[Tensor, " n_latents"]
    ) -> Float[Tensor, "batch pos d_source"]:
        """Sum over latents of f_j delta_j."""
        chosen = torch.as_tensor(latents, dtype=torch.long, device=feature_acts.device)
        return feature_acts[..., chosen] @ self.directions[chosen].to(feature_acts.dtype)


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)


def kl_divergence(
    log_p: Float[Tensor, "*batch d_vocab"], log_q: Float[Tensor, "*batch d_vocab"]
) -> Float[Tensor, "*batch"]:
    """KL(p || q) in nats, from log-probabilities."""
    return (log_p.exp() * (log_p - log_q.to(log_p.device))).sum(dim=-1)


@torch.no_grad()
def kl_per_token(comparison: ModelComparison, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
    """KL(finetuned || base) of the two models' next-token distributions at every position, in nats."""
    log_finetuned, log_base = (
        _log_probabilities(comparison.joint.view(label)(tokens, return_type="logits"))
        for label in (comparison.finetuned, comparison.base)
    )
    return kl_divergence(log_finetuned, log_base)
