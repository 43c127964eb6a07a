"""Two models and their crosscoder, as causal questions see them: what passes the hook, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from torch import Tensor

from sae_lens_crosscoder.causal.continuation import continued_logits
from sae_lens_crosscoder.diffing import LinearDecoder
from sae_lens_crosscoder.errors import ConfigError, ShapeError, SourceError
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
    """Latent activations; 0 where the crosscoder does not read."""

    is_read: Bool[Tensor, "batch pos"]
    """Positions that the crosscoder reads."""


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
        ignored_tokens: Token ids that the crosscoder does not read, such as BOS: those left out of training, on which
            it would be out of its distribution.

    Raises:
        SourceError: Models with tokens of their own or at different hooks, a label that no source has, one label
            twice, more than two sources and no labels, or a difference taken the other way.
        ConfigError: An SAE whose decoder is not linear.
        ShapeError: Two sources of different width, whose activations cannot be exchanged.
    """

    def __init__(
        self,
        joint: JointModel,
        sae: SAE[Any],
        base: str | None = None,
        finetuned: str | None = None,
        ignored_tokens: Sequence[int] = (),
    ) -> None:
        sources = joint.sources
        if sources.token_alignment != "same_ids":
            raise SourceError(
                "The models read tokens of their own (token_alignment='character_offsets'), so that one's activations "
                "cannot be put into the other at every token. Causal comparisons need models that share a vocabulary."
            )
        self.base, self.finetuned = sources.pair(base, finetuned)
        one, other = (sources[sources.position(label)] for label in (self.base, self.finetuned))
        if one.d_in != other.d_in:
            raise ShapeError(
                f"{self.base!r} is {one.d_in} wide and {self.finetuned!r} {other.d_in}: activations of one cannot be "
                "put into the other. Their decoders can still be compared (diff --decoder-only)."
            )
        if one.hook_name != other.hook_name:
            raise SourceError(
                f"{self.base!r} is read at {one.hook_name!r} and {self.finetuned!r} at {other.hook_name!r}: an "
                "activation of one place put into another is no patch. Their decoders can still be compared (diff "
                "--decoder-only)."
            )
        if sources.combine == "difference" and [self.base, self.finetuned] != sources.labels:
            raise SourceError(
                f"The SAE is trained on {sources.labels[1]!r} minus {sources.labels[0]!r}, so that the base is "
                f"{sources.labels[0]!r}, not {self.base!r}."
            )
        self.joint = joint
        self.sae = sae
        self.ignored_tokens = torch.tensor(list(ignored_tokens), dtype=torch.long)
        # What the SAE decodes, which for some of SAELens's classes is not W_dec.
        self.linear_decoder = LinearDecoder.of(sae)

    def decoder(self, label: str) -> Float[Tensor, "d_sae d_source"]:
        """What a unit of each latent adds to one model; for a difference, to the difference."""
        return self.linear_decoder.directions[:, self.joint.sources.columns(label)]

    @cached_property
    def n_vocab(self) -> int:
        """Tokens that both models predict: vocabularies may be padded to different sizes."""
        token = torch.zeros(1, 1, dtype=torch.long)
        with torch.no_grad():
            logits = [self.joint.view(label)(token, return_type="logits") for label in (self.base, self.finetuned)]
        return min(part.shape[-1] for part in logits)

    def sequences_at_once(self, n_positions: int, wanted: int) -> int:
        """How many of the wanted sequences go through the models at once, so that one tensor of logits fits 1 GiB."""
        return max(1, min(wanted, 2**28 // (n_positions * self.n_vocab)))

    @cached_property
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
        is_read = ~torch.isin(tokens.cpu(), self.ignored_tokens).to(self.sae.device)
        feature_acts = self.sae.encode(joined.to(self.sae.device)) * is_read[..., None]
        return PairedRun(tokens, here[0], here[1], feature_acts, is_read)

    def continued(
        self, label: str, tokens: Int[Tensor, "batch pos"], activation: Float[Tensor, "batch pos d_source"]
    ) -> Float[Tensor, "batch pos d_vocab"]:
        """Log-probabilities of one model's next tokens, continued from an activation at its hook, with gradient."""
        source = self.joint.sources[self.joint.sources.position(label)]
        logits = continued_logits(self.joint.view(label).source_model, source.hook_name, tokens, activation)
        return _log_probabilities(logits[..., : self.n_vocab])

    def contribution(
        self, feature_acts: Float[Tensor, "batch pos d_sae"], latents: Sequence[int] | Int[Tensor, " n_latents"]
    ) -> Float[Tensor, "batch pos d_source"]:
        """Sum over latents of f_j delta_j.

        Raises:
            ConfigError: A latent that there is not.
        """
        chosen = torch.as_tensor(latents, dtype=torch.long, device=feature_acts.device)
        check_latents(chosen.tolist(), len(self.directions))
        return feature_acts[..., chosen] @ self.directions[chosen].to(feature_acts.dtype)


@torch.no_grad()
def ablated(
    comparison: ModelComparison,
    label: str,
    run: PairedRun,
    directions: Float[Tensor, "d_sae d_source"],
    latents: Sequence[int],
    n_reruns_at_once: int,
) -> Iterator[tuple[Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, "n pos d_vocab"]]]:
    """One model rerun without f_j times a direction of latent j, for each latent and each sequence in which it fires.

    Yields positions in `latents`, the sequences, and the log-probabilities of the next tokens, some reruns at a time.

    Args:
        comparison: The models and the crosscoder.
        label: The model.
        run: What passed its hook.
        directions: What is removed per unit of activation, at every position.
        latents: Latents that are removed, one at a time.
        n_reruns_at_once: Sequences that go through the model at once.

    Raises:
        ConfigError: A latent that there is not.
    """
    check_latents(latents, len(directions))
    activation = run.base if label == comparison.base else run.finetuned
    pairs = (run.feature_acts[..., list(latents)] != 0).any(dim=1).T.cpu().nonzero()
    for chunk in pairs.split(n_reruns_at_once) if len(pairs) > 0 else ():
        which, rows = chunk.unbind(dim=1)
        chosen = torch.tensor(latents, dtype=torch.long)[which].to(activation.device)
        acts = run.feature_acts[rows].gather(-1, chosen[:, None, None].expand(-1, run.tokens.shape[1], 1))
        removed = activation[rows] - acts * directions[chosen][:, None]
        yield which, rows, comparison.continued(label, run.tokens[rows], removed)


def all_but_first(tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """All positions but the first, where BOS stands."""
    counted = torch.ones_like(tokens, dtype=torch.bool)
    counted[:, 0] = False
    return counted


def check_latents(latents: Sequence[int], d_sae: int) -> None:
    """Raises:
    ConfigError: A latent that there is not.
    """
    unknown = [j for j in latents if not 0 <= j < d_sae]
    if unknown:
        raise ConfigError(f"There is no latent {unknown[0]}: the crosscoder has 0 to {d_sae - 1}.")


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)


def kl_divergence(
    log_p: Float[Tensor, "*batch d_vocab"], log_q: Float[Tensor, "*batch d_vocab"]
) -> Float[Tensor, "*batch"]:
    """KL(p || q) in nats, from log-probabilities; tokens that p never says count 0."""
    terms = log_p.exp() * (log_p - log_q.to(log_p.device))
    return torch.where(log_p == -torch.inf, 0.0, terms).sum(dim=-1)


@torch.no_grad()
def kl_per_token(comparison: ModelComparison, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos"]:
    """KL(finetuned || base) of the two models' next-token distributions at every position, in nats."""
    log_finetuned, log_base = (
        _log_probabilities(comparison.joint.view(label)(tokens, return_type="logits")[..., : comparison.n_vocab])
        for label in (comparison.finetuned, comparison.base)
    )
    return kl_divergence(log_finetuned, log_base)
