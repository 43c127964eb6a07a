"""One pass of an SAE over a stream of activations that feeds any number of accumulators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.diffing.active_latents import ActiveLatents
from sae_lens_crosscoder.diffing.linear_decoder import LinearDecoder, SparseAutoencoder
from sae_lens_crosscoder.errors import DataError, ShapeError
from sae_lens_crosscoder.sources import Sources


@dataclass(frozen=True)
class TokenBatch:
    """Activations of some tokens and what is known about each token. Only `TopContexts` and groups need more than `x`.

    Raises:
        ShapeError: Not one entry a token.
    """

    x: Float[Tensor, "batch d_joint"]
    """The activations of all sources side by side, raw, in the order of the sources."""

    sequence_ids: Int[Tensor, " n_tokens"] | None = None
    """Which sequence each token stands in."""

    positions: Int[Tensor, " n_tokens"] | None = None
    """Where in its sequence each token stands."""

    groups: Mapping[str, Int[Tensor, " n_tokens"]] = field(default_factory=dict[str, Tensor])
    """Numbered groups that each token belongs to, by kind, such as "dataset" and "role"."""

    def __post_init__(self) -> None:
        named = {"sequence_ids": self.sequence_ids, "positions": self.positions, **self.groups}
        for name, numbers in named.items():
            if numbers is not None and numbers.shape != self.x.shape[:1]:
                raise ShapeError(
                    f"The batch has {len(self.x)} tokens, but {name} has shape {tuple(numbers.shape)}: give one number "
                    "for each token."
                )

    def to(self, device: torch.device) -> TokenBatch:
        """The same on another device."""
        return TokenBatch(
            x=self.x.to(device),
            sequence_ids=None if self.sequence_ids is None else self.sequence_ids.to(device),
            positions=None if self.positions is None else self.positions.to(device),
            groups={kind: numbers.to(device) for kind, numbers in self.groups.items()},
        )


@dataclass(frozen=True)
class CodedBatch:
    """What an accumulator gets: a batch of tokens and what the SAE made of it, on the SAE's device."""

    tokens: TokenBatch
    """The activations and what is known about each token."""

    sae_in: Float[Tensor, "batch d_in"]
    """What was encoded: the joint activations, or for a difference the second source's minus the first's."""

    active: ActiveLatents
    """The latent activations."""

    reconstruction: Float[Tensor, "batch d_in"]
    """Of `sae_in`, in float32 or better."""

    decoder: LinearDecoder
    """The SAE's decoder."""

    sources: Sources
    """Which columns belong to which source."""


@runtime_checkable
class Accumulator(Protocol):
    """Whatever sums something up over batches."""

    def add(self, batch: CodedBatch, /) -> None:
        """Take in one batch."""
        ...


def run_pass(
    sae: SparseAutoencoder,
    batches: Iterable[Tensor | TokenBatch],
    accumulators: Sequence[Accumulator],
    sources: Sources | None = None,
    progress: bool = False,
    decoder: LinearDecoder | None = None,
) -> None:
    """Encode every batch once and give it to all accumulators, without gradients.

    The stream is read to its end, so cut an endless one (`itertools.islice(store, n_batches)`). Batches may differ in
    size and be in half precision; nothing is kept of them.

    A batch holds the raw activations of all sources side by side. For a difference SAE (`combine="difference"`) it
    holds both models' activations too, `(batch, 2 * d_in)`, and the second minus the first is encoded; batches that
    hold only the difference, `(batch, d_in)`, serve the accumulators that do not compare the models.

    Args:
        sae: Any SAE with `encode`, `decode`, `W_dec` and `cfg`. Its latent activations must not depend on the other
            tokens of the batch: saved SAEs are so, BatchTopK in training is not.
        batches: Activations, or activations with what is known about their tokens.
        accumulators: What is fed, in this order.
        sources: Which columns belong to which source; by default what `sae.cfg.metadata` says.
        progress: Whether to show a progress bar.
        decoder: The SAE's decoder, if it was read before: reading it takes as long as encoding 2 d_in tokens.

    Raises:
        SourceError: No sources are given, and the SAE's metadata have none.
        ShapeError: Batches or sources that do not fit the SAE.
        DataError: Activations that are infinite or not a number.
        ConfigError: An SAE whose decoder is not linear.
    """
    sources = Sources.from_metadata(sae.cfg.metadata) if sources is None else sources
    if sae.W_dec.shape[1] != sources.d_in:
        raise ShapeError(
            f"The SAE reads {sae.W_dec.shape[1]} columns, but its sources {', '.join(sources.labels)} have "
            f"{sources.d_in}: pass the sources that it was trained on."
        )
    with torch.no_grad():
        decoder = LinearDecoder.of(sae) if decoder is None else decoder
        is_first = True
        for batch in tqdm(batches, disable=not progress, desc="Reading latents", unit="batch"):
            tokens = (batch if isinstance(batch, TokenBatch) else TokenBatch(batch)).to(sae.W_dec.device)
            if len(tokens.x) == 0:
                continue
            coded = _coded(sae, decoder, sources, tokens, check=is_first)
            is_first = False
            for accumulator in accumulators:
                accumulator.add(coded)


def _coded(
    sae: SparseAutoencoder, decoder: LinearDecoder, sources: Sources, tokens: TokenBatch, check: bool
) -> CodedBatch:
    sae_in = _sae_in(tokens.x, sources)
    if not bool(torch.isfinite(sae_in).all()):
        raise DataError(
            "A batch has activations that are infinite or not a number, and every sum after it would be too. Half "
            "precision overflows in some models: load them in bfloat16 or float32."
        )
    feature_acts = sae.encode(sae_in.to(sae.W_dec.dtype))
    feature_acts = feature_acts if feature_acts.layout == torch.strided else feature_acts.to_dense()
    if check:
        decoder.require_agreement(sae, feature_acts)
    active = ActiveLatents.from_dense(feature_acts)
    return CodedBatch(tokens, sae_in, active, decoder.reconstruct(active), decoder, sources)


def _sae_in(x: Tensor, sources: Sources) -> Tensor:
    """What the SAE encodes of a batch."""
    if x.ndim == 2 and x.shape[1] == sources.d_in:
        return x
    if sources.combine == "difference" and x.ndim == 2 and x.shape[1] == 2 * sources.d_in:
        # In full precision: two nearly equal halves would lose what is left of their difference.
        first, second = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=1)
        return second - first
    wanted = f"(batch, {sources.d_in})"
    if sources.combine == "difference":
        wanted = f"(batch, {2 * sources.d_in}) with both models' activations, or {wanted} with their difference"
    raise ShapeError(f"A batch has shape {tuple(x.shape)}; for the sources {', '.join(sources.labels)} pass {wanted}.")
