"""Latent scaling: how much of a latent is in each model's activations, whatever the decoder norms say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.diffing.linear_decoder import LinearDecoder, SparseAutoencoder
from sae_lens_crosscoder.diffing.sae_pass import CodedBatch, TokenBatch, run_pass
from sae_lens_crosscoder.diffing.scaling_result import LatentScalingResult
from sae_lens_crosscoder.errors import ConfigError, DataError, ShapeError
from sae_lens_crosscoder.sources import Sources

_SUMMED = ("n_active", "activation", "squared_activation", "products")
_NUMBERS_AT_ONCE = 2**21
"""Numbers in float64 that one block of latents takes: 16 MB, however wide the sources are."""


def latent_scaling(
    sae: SparseAutoencoder,
    batches: Iterable[Tensor | TokenBatch],
    probe: str,
    sources: Sources | None = None,
    progress: bool = False,
) -> LatentScalingResult:
    """Beta of every latent for every source and target, and their ratios nu (Minder, Dumas et al. 2025).

    For a latent with activations f_i, and v the probe source's decoder direction of it,

        beta = argmin_b Σ_i |Y_i - b f_i v|^2 = Σ_i f_i (Y_i . v) / (|v|^2 Σ_i f_i^2)

    for the targets Y of every source: "error" (its activation minus what all *other* latents and the bias reconstruct
    of it), "reconstruction" (with the bias and the latent itself), "activation", and "activation_no_bias" (minus the
    decoder bias). The same v serves all sources. nu is a source's beta over the probe source's. A beta is NaN for a
    latent that never fires, or whose v is zero.

    For a difference SAE a latent has one direction, and the models have no error or reconstruction of their own: the
    only target is "activation", the two models' activations, with the latent activations of their difference. Batches
    then hold both models' activations.

    The sums are in float64, so batches may be cut anywhere. Time is that of the encoder and a few products with the
    active latents; memory does not grow with the number of tokens.

    Args:
        sae: Any SAE on the joint activations.
        batches: As for `run_pass`.
        probe: Label of the source whose decoder direction is used and whose beta is the denominator of nu; usually the
            fine-tuned model's.
        sources: As for `run_pass`.
        progress: Whether to show a progress bar.

    Raises:
        SourceError: No source is called so, or no sources are known.
        ShapeError: Sources of different width, whose activations have no product with one direction.
        DataError: There are no tokens.
        ConfigError: Fewer than two sources; what `run_pass` refuses.
    """
    accumulator = LatentScaling(probe)
    run_pass(sae, batches, [accumulator], sources, progress)
    return accumulator.compute()


@dataclass
class _Sums:
    """What is summed up over tokens, in float64, and what the sums are for."""

    decoder: LinearDecoder
    sources: Sources
    n_tokens: int
    n_active: Int[Tensor, " d_sae"]
    activation: Float[Tensor, " d_sae"]
    squared_activation: Float[Tensor, " d_sae"]
    products: Float[Tensor, "d_sae n_targets n_sources"]
    """Σ_i f_i (x_i . v) and, unless the SAE is one of a difference, Σ_i f_i (e_i . v), e being the SAE's error."""

    @classmethod
    def zeros(cls, decoder: LinearDecoder, sources: Sources) -> _Sums:
        d_sae = len(decoder.directions)
        zeros = decoder.directions.new_zeros(d_sae, dtype=torch.float64)
        n_targets = 1 if sources.combine == "difference" else 2
        products = zeros.new_zeros(d_sae, n_targets, len(sources))
        return cls(decoder, sources, 0, zeros.long(), zeros.clone(), zeros.clone(), products)


class LatentScaling:
    """Accumulator of `latent_scaling`, to share one pass with others (`run_pass`).

    Args:
        probe: Label of the source whose decoder direction is used.
    """

    def __init__(self, probe: str) -> None:
        self.probe = probe
        self._sums: _Sums | None = None

    def add(self, batch: CodedBatch) -> None:
        """Take in one batch.

        Raises:
            SourceError: No source is called as the probe.
            ShapeError: Sources of different width, or for a difference batches without both models' activations.
            ConfigError: Fewer than two sources.
        """
        if self._sums is None:
            _require_comparable(batch.sources, self.probe)
            self._sums = _Sums.zeros(batch.decoder, batch.sources)
        sums, active = self._sums, batch.active
        values = active.values.double()
        sums.n_tokens += active.n_rows
        sums.n_active += active.latent_offsets.diff()
        sums.activation.index_add_(0, active.latents, values)
        sums.squared_activation.index_add_(0, active.latents, values.square())
        targets = _targets(batch)
        probe = _direction_of(sums, self.probe)
        step = max(1, _NUMBERS_AT_ONCE // targets.shape[1])
        for start in range(0, active.d_sae, step):
            stop = min(start + step, active.d_sae)
            weighted = active.weighted_latents(targets, start, stop).unflatten(1, (*sums.products.shape[1:], -1))
            sums.products[start:stop] += (weighted * probe[start:stop, None, None].double()).sum(dim=-1)

    def merge(self, other: LatentScaling) -> None:
        """Add what another accumulator has summed up over other tokens.

        Raises:
            ConfigError: It has another probe, or its sums are of another SAE or of other sources.
        """
        if other._sums is None:
            return
        if self._sums is None:
            self._sums = _Sums.zeros(other._sums.decoder, other._sums.sources)
        ours, theirs = self._sums, other._sums
        same_sae = torch.equal(ours.decoder.directions, theirs.decoder.directions)
        if self.probe != other.probe or ours.sources != theirs.sources or not same_sae:
            raise ConfigError(
                "The two accumulators have different probes, sources or SAEs, and a sum over both would be about "
                "neither: merge only parts of one stream."
            )
        ours.n_tokens += theirs.n_tokens
        ours.n_active += theirs.n_active
        ours.activation += theirs.activation
        ours.squared_activation += theirs.squared_activation
        ours.products += theirs.products

    def state_dict(self) -> dict[str, Tensor]:
        """The sums so far, for `load_state_dict` of another process; empty before the first batch."""
        sums = self._sums
        if sums is None:
            return {}
        return {"n_tokens": torch.tensor(sums.n_tokens), **{name: getattr(sums, name) for name in _SUMMED}}

    def load_state_dict(self, state: Mapping[str, Tensor], decoder: LinearDecoder, sources: Sources) -> None:
        """Go on from the sums of `state_dict`, which were made with this decoder and these sources."""
        if not state:
            self._sums = None
            return
        device = decoder.directions.device
        summed = {name: state[name].to(device, copy=True) for name in _SUMMED}
        self._sums = _Sums(decoder, sources, int(state["n_tokens"]), **summed)

    def compute(self) -> LatentScalingResult:
        """Beta and nu over all tokens that were added.

        Raises:
            DataError: There were none.
        """
        sums = self._sums
        if sums is None:
            raise DataError("No tokens were added, so there is nothing to scale: the stream of batches was empty.")
        direction = _direction_of(sums, self.probe)
        squared_norm = _row_products(direction, direction)
        # 0 / 0 where a latent never fires or has no direction: NaN, and so is every beta of it.
        unit = squared_norm * sums.squared_activation
        beta: dict[str, dict[str, Tensor]] = {}
        for i, label in enumerate(sums.sources.labels):
            activation = sums.products[:, 0, i]
            beta[label] = {"activation": activation / unit}
            if sums.sources.combine == "difference":
                continue
            error = sums.products[:, 1, i]
            columns = sums.sources.columns(label)
            bias = direction.double() @ sums.decoder.bias[columns].double()
            own = _row_products(sums.decoder.directions[:, columns], direction)
            beta[label]["activation_no_bias"] = (activation - sums.activation * bias) / unit
            beta[label]["reconstruction"] = (activation - error) / unit
            # Putting the latent back into the error adds f d to it, and so d . v / |v|^2 to beta.
            beta[label]["error"] = error / unit + own / squared_norm
        return LatentScalingResult(self.probe, beta, sums.n_active.clone(), sums.n_tokens)


def _require_comparable(sources: Sources, probe: str) -> None:
    own = sources[sources.position(probe)]
    if len(sources) < 2:
        raise ConfigError(
            f"Latent scaling compares sources, and {probe!r} is the only one: train on at least two models."
        )
    if any(source.d_in != own.d_in for source in sources):
        widths = ", ".join(f"{source.label}: {source.d_in}" for source in sources)
        raise ShapeError(
            f"The sources differ in width ({widths}), so that the decoder direction of {probe!r} has no product with "
            "the others' activations. Latent scaling needs sources of equal width."
        )


def _direction_of(sums: _Sums, probe: str) -> Tensor:
    return sums.decoder.directions[:, sums.sources.columns(probe)]


def _targets(batch: CodedBatch) -> Float[Tensor, "batch d_targets"]:
    """The activations of all sources and then the SAE's errors, side by side in float64."""
    x, sources = batch.tokens.x, batch.sources
    if x.shape[1] != sum(source.d_in for source in sources):
        raise ShapeError(
            f"The batches have {x.shape[1]} columns, the difference of the models alone, and latent scaling compares "
            f"the models: pass the activations of {' and '.join(sources.labels)} side by side, "
            f"(batch, {2 * sources.d_in})."
        )
    if sources.combine == "difference":
        return x.double()
    return torch.cat([x.double(), batch.sae_in.double() - batch.reconstruction.double()], dim=1)


def _row_products(first: Tensor, second: Tensor) -> Float[Tensor, " d_sae"]:
    """`first_j . second_j` in float64, a block of rows at a time."""
    step = max(1, _NUMBERS_AT_ONCE // first.shape[1])
    blocks = zip(first.split(step), second.split(step), strict=True)
    return torch.cat([(a.double() * b.double()).sum(dim=1) for a, b in blocks])
