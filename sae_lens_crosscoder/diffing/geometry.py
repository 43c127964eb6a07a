"""What a crosscoder's decoder says by itself: how long each latent is in each source, and in which direction it points.

The decoder is flat, `W_dec (d_sae, d_in)`: the columns of the sources stand side by side, in the order of `widths`.
Nothing here follows gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.errors import ConfigError, ShapeError

_N_ROWS_AT_ONCE = 1024
"""Latents whose unit vectors are made at once: a decoder may fill most of the memory."""


def decoder_norms(
    W_dec: Float[Tensor, "d_sae d_in"],
    widths: Sequence[int],
    scales: Sequence[float] | None = None,
) -> Float[Tensor, "d_sae n_sources"]:
    """Length of every latent's decoder vector in every source, `‖d_j[m]‖₂ · scales[m]`.

    Half-precision weights are measured in float32.

    Args:
        W_dec: The flat decoder.
        widths: Columns of each source, in order; they add up to `d_in`.
        scales: Factor per source that activations were multiplied by in training and that was then folded into the
            weights (`sqrt(width) / mean norm`; a decoder that took it in is shorter by it). With it, norms are in
            units in which each source's mean activation norm is `sqrt(width)`, as in Kissane et al. (2024); without
            it they are in raw activation units, and a source with larger activations looks more important.

    Raises:
        ShapeError: The widths do not add up to `d_in`, or there is not one scale per source.
        ConfigError: A scale that is not positive and finite, or a decoder with infinite or missing numbers.
    """
    norms = torch.stack([_slice_norms(part) for part in _source_slices(W_dec, widths)], dim=-1)
    if scales is not None:
        if len(scales) != len(widths):
            raise ShapeError(
                f"There are {len(scales)} scales for {len(widths)} sources: give one activation scale per source, "
                "in the order of the widths."
            )
        if not all(math.isfinite(scale) and scale > 0 for scale in scales):
            raise ConfigError(f"Activation scales must be positive and finite, not {list(scales)}.")
        norms = norms * torch.tensor(list(scales), dtype=norms.dtype, device=norms.device)
    return norms


def decoder_norm_shares(norms: Float[Tensor, "d_sae n_sources"]) -> Float[Tensor, "d_sae n_sources"]:
    """Each source's share of a latent's summed decoder norm, `‖d_j[m]‖ / Σ_m' ‖d_j[m']‖`.

    Rows sum to 1. A latent whose norms are all zero has no share: its row is NaN. For two sources, column 1 is the
    relative decoder norm. Any factor common to a latent's sources cancels, so a decoder in canonical form (norms
    that sum to 1) and the one it came from have the same shares.

    Raises:
        ShapeError: Norms of fewer than two sources.
    """
    _require_norms(norms)
    # By the largest norm first: the sum of two tiny or two huge norms is then never rounded to 0 or infinity.
    relative = norms / norms.amax(dim=-1, keepdim=True)
    return relative / relative.sum(dim=-1, keepdim=True)


def relative_decoder_norms(
    norms: Float[Tensor, "d_sae n_sources"], source: int | None = None
) -> Float[Tensor, " d_sae"]:
    """The relative decoder norm of every latent: one source's share of the summed decoder norm.

    For two sources `‖d_j[1]‖ / (‖d_j[0]‖ + ‖d_j[1]‖)`, in [0, 1]: 0 is only in the first source (base), 1 only in the
    second (fine-tuned). NaN for a latent whose norms are all zero. This is the ratio of Kissane et al. (2024), "Open
    Source Replication of Anthropic's Crosscoder paper for model-diffing"; the Delta of Minder et al. points the other
    way (`minder_delta`).

    Args:
        norms: From `decoder_norms`.
        source: Whose share. May be left out for two sources, and is then the second one.

    Raises:
        ShapeError: Norms of fewer than two sources.
        ConfigError: Three or more sources and none named, or a source that is not there.
    """
    _require_norms(norms)
    n_sources = norms.shape[1]
    if source is None:
        if n_sources != 2:
            raise ConfigError(
                f"The norms are of {n_sources} sources, and 'the' relative decoder norm is one of two: name the "
                "source whose share is wanted, or take decoder_norm_shares for all."
            )
        source = 1
    if not 0 <= source < n_sources:
        raise ConfigError(f"There is no source {source}: the norms are of sources 0 to {n_sources - 1}.")
    return decoder_norm_shares(norms)[:, source]


def minder_delta(norms: Float[Tensor, "d_sae n_sources"]) -> Float[Tensor, " d_sae"]:
    """The Delta of Minder et al., `½ ((‖d[0]‖ − ‖d[1]‖) / max(‖d[0]‖, ‖d[1]‖) + 1)`, for two sources.

    It runs against the relative decoder norm: 1 is only in the first source (base), 0 only in the second
    (fine-tuned). It also divides by the larger norm instead of the sum, so that the two are no mirror images: a
    Delta of 0.1 is a relative norm of 0.833. NaN where both norms are zero. From Minder, Dumas et al. (2025),
    "Overcoming Sparsity Artifacts in Crosscoders to Interpret Chat-Tuning", as their code orients it; their figures
    show 1 − Delta.

    Raises:
        ShapeError: Norms of other than two sources.
    """
    _require_norms(norms)
    if norms.shape[1] != 2:
        raise ShapeError(
            f"Delta is defined for two sources, and these norms are of {norms.shape[1]}: pass the two columns "
            "to be compared."
        )
    return 0.5 * ((norms[:, 0] - norms[:, 1]) / norms.amax(dim=-1) + 1)


def decoder_cosine(
    W_dec: Float[Tensor, "d_sae d_in"],
    widths: Sequence[int],
    pair: tuple[int, int] = (0, 1),
) -> Float[Tensor, " d_sae"]:
    """Cosine between every latent's decoder vectors in two sources, in [-1, 1].

    1 means that both models write the latent in the same direction. It says nothing about lengths, so read it for
    shared latents only: the short side of an exclusive latent points anywhere. NaN where one of the two vectors is
    zero. Folded scales do not change it.

    Raises:
        ShapeError: The widths do not add up to `d_in`, or the two sources differ in width, so that their directions
            live in different spaces.
        ConfigError: The pair names a source that is not there, or one source twice; a decoder with infinite or
            missing numbers.
    """
    first, second = pair
    if first == second or not all(0 <= source < len(widths) for source in pair):
        raise ConfigError(f"The pair {pair} must name two different sources out of 0 to {len(widths) - 1}.")
    slices = _source_slices(W_dec, widths)
    if widths[first] != widths[second]:
        raise ShapeError(
            f"Source {first} is {widths[first]} wide and source {second} is {widths[second]}: directions in spaces "
            "of different width have no cosine. Compare the norms only."
        )
    operands = [t for s in pair for t in (slices[s], _slice_norms(slices[s])[:, None])]
    rows = zip(*(operand.split(_N_ROWS_AT_ONCE) for operand in operands), strict=True)
    cosines = [((one / norms) * (other / other_norms)).sum(dim=-1) for one, norms, other, other_norms in rows]
    return torch.cat(cosines).clamp(-1.0, 1.0)


def _source_slices(W_dec: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """The decoder cut into sources, `(d_sae, width)` each, in float32 or better."""
    if W_dec.ndim != 2:
        raise ShapeError(f"The decoder must be flat, (d_sae, d_in), not {tuple(W_dec.shape)}.")
    if not widths or any(width < 1 for width in widths):
        raise ShapeError(f"Every source needs at least one column; the widths are {list(widths)}.")
    if sum(widths) != W_dec.shape[1]:
        raise ShapeError(
            f"The widths {list(widths)} add up to {sum(widths)}, but the decoder has {W_dec.shape[1]} columns: cut "
            "there, latents of one source would be read as another's. Pass the width of every source, in order."
        )
    weights = W_dec.detach().to(torch.promote_types(W_dec.dtype, torch.float32))
    return weights.split(list(widths), dim=1)


def _slice_norms(part: Tensor) -> Tensor:
    """Length of every row, `(d_sae,)`, all finite."""
    norms = torch.linalg.vector_norm(part, dim=-1)
    n_broken = int((~torch.isfinite(norms)).sum())
    if n_broken:
        raise ConfigError(
            f"{n_broken} of {len(norms)} latents have decoder weights that are infinite or not a number, so they "
            "have no norm: training diverged, or the file is damaged."
        )
    return norms


def _require_norms(norms: Tensor) -> None:
    if norms.ndim != 2 or norms.shape[1] < 2:
        raise ShapeError(
            f"Norms must be (d_sae, n_sources) with at least two sources, not {tuple(norms.shape)}: "
            "take them from decoder_norms."
        )
