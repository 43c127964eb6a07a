"""How far latents turn from one stage of training to the next: stage-wise model diffing (Bricken et al. 2024).

One dictionary is trained through stages. From S (base model, clean data) one path changes the data first, S -> D -> DF,
the other the model first, S -> M -> MF; both end at the fine-tuned model on its fine-tuning data. A latent that turns
in D -> DF answers to the model, one that turns in M -> MF to the data, and one that turns in both to both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.diffing.geometry import decoder_norms
from sae_lens_crosscoder.errors import ConfigError, ShapeError

MAX_CHANGE_DM = "max_change_DM"
MAX_CHANGE_D = "max_change_D"
MAX_CHANGE_M = "max_change_M"
MIN_CHANGE_DM = "min_change_DM"
UNDEFINED = "undefined"
QUADRANTS = (MIN_CHANGE_DM, MAX_CHANGE_D, MAX_CHANGE_M, MAX_CHANGE_DM)
"""Names of the quadrants, in the order of the numbers that Soligo & Read's code gives them."""


def rotation(
    W_dec_before: Float[Tensor, "d_sae d_in"],
    W_dec_after: Float[Tensor, "d_sae d_in"],
    widths: Sequence[int] | None = None,
    scales_before: Sequence[float] | None = None,
    scales_after: Sequence[float] | None = None,
) -> Float[Tensor, " d_sae"]:
    """Cosine between every latent's whole decoder row before and after a stage, over all sources at once.

    1 is a latent that kept its direction, and its shares of the sources; smaller is turned further. Lengths drop out,
    so canonical and raw weights give the same. NaN for a latent whose row is zero before or after.

    Args:
        W_dec_before: The flat decoder of the earlier stage.
        W_dec_after: The flat decoder of the later stage, latents in the same order.
        widths: Columns of each source, in order; needed with scales.
        scales_before: Factor per source that was folded into the earlier decoder. With scales the rows are compared in
            the units that they were trained in, where every source counts alike; without them in raw activation
            units, where a source with larger activations weighs more.
        scales_after: The same of the later decoder; that of the earlier one if left out.

    Raises:
        ShapeError: Decoders of different shape, scales without widths, or widths that do not add up.
        ConfigError: A decoder with infinite or missing numbers, a scale that is not positive and finite, or scales of
            the later decoder only.
    """
    if W_dec_before.shape != W_dec_after.shape:
        raise ShapeError(
            f"The decoders are {tuple(W_dec_before.shape)} and {tuple(W_dec_after.shape)}: latents can only be "
            "followed through stages of one dictionary."
        )
    if scales_before is None and scales_after is not None:
        raise ConfigError(
            "There are scales for the later decoder only, so that rows in different units would be compared, and a "
            "latent that kept its direction would look turned. Pass scales_before too: 1 for every source if nothing "
            "was folded into the earlier decoder."
        )
    if scales_after is None:
        scales_after = scales_before
    before = _unit_rows(W_dec_before, widths, scales_before)
    after = _unit_rows(W_dec_after, widths, scales_after)
    return (before * after.to(before)).sum(dim=-1).clamp(-1.0, 1.0)


@dataclass(frozen=True)
class StageRotations:
    """The two-axis picture of stage-wise diffing: how far every latent turned in each of the two last steps.

    A latent is turned far on an axis if its cosine is below that axis' percentile over all latents. D and M in the
    names of the quadrants are the stages that the two steps *begin* at, as Soligo & Read (2025) number them:
    `max_change_D` turned far in D -> DF only, where the model changes under the fine-tuning data; `max_change_M` in
    M -> MF only, where the data change under the fine-tuned model; `max_change_DM` in both; `min_change_DM` in neither.

    Raises:
        ShapeError: Cosines of different numbers of latents.
        ConfigError: A percentile outside (0, 100), or an axis without a cosine.
    """

    model_change: Float[Tensor, " d_sae"]
    """Horizontal axis: `rotation` from D to DF. The data are the fine-tuning data, the model changes."""

    data_change: Float[Tensor, " d_sae"]
    """Vertical axis: `rotation` from M to MF. The model is the fine-tuned one, the data change."""

    percentile: float = 5.0
    """Share of the latents, in percent, that count as turned far on each axis."""

    def __post_init__(self) -> None:
        if self.model_change.shape != self.data_change.shape:
            raise ShapeError(
                f"The axes have {len(self.model_change)} and {len(self.data_change)} latents: all stages are of one "
                "dictionary."
            )
        if not 0 < self.percentile < 100:
            raise ConfigError(f"percentile={self.percentile} must lie between 0 and 100.")
        for name, cosines in (("model_change", self.model_change), ("data_change", self.data_change)):
            if bool(cosines.isnan().all()):
                raise ConfigError(f"No latent has a cosine in {name}: all its decoder rows are zero.")

    @cached_property
    def thresholds(self) -> tuple[float, float]:
        """The cosines below which a latent is turned far: of the model change and of the data change."""
        share = self.percentile / 100
        model, data = (float(axis.double().nanquantile(share)) for axis in (self.model_change, self.data_change))
        return model, data

    @cached_property
    def quadrants(self) -> list[str]:
        """The quadrant of every latent; "undefined" for one without a cosine on either axis."""
        x, y = self.thresholds
        numbers = (self.model_change < x).long() + 2 * (self.data_change < y).long()
        unknown = (self.model_change.isnan() | self.data_change.isnan()).tolist()
        return [UNDEFINED if gone else QUADRANTS[i] for i, gone in zip(numbers.tolist(), unknown, strict=True)]

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of latents in every quadrant that has some, the quadrants that changed most first."""
        return {name: n for name in (*reversed(QUADRANTS), UNDEFINED) if (n := self.quadrants.count(name))}

    @cached_property
    def model_ranks(self) -> Int[Tensor, " d_sae"]:
        """Rank of every latent by model change; 1 turned furthest, those without a cosine come last."""
        return ranks(self.model_change)

    @cached_property
    def data_ranks(self) -> Int[Tensor, " d_sae"]:
        """Rank of every latent by data change; 1 turned furthest, those without a cosine come last."""
        return ranks(self.data_change)

    @cached_property
    def joint_ranks(self) -> Int[Tensor, " d_sae"]:
        """Rank by the worse of the two ranks, ties by their sum: 1 is far up on both axes."""
        worse = torch.maximum(self.model_ranks, self.data_ranks).double()
        return ranks(worse + (self.model_ranks + self.data_ranks) / (4 * len(worse)))


def ranks(values: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Rank of every value, 1 for the smallest; equal values in their order, NaN last."""
    order = values.nan_to_num(nan=torch.inf).argsort(stable=True)
    placed = torch.empty_like(order)
    placed[order] = torch.arange(1, len(order) + 1, device=order.device)
    return placed


def _unit_rows(W_dec: Tensor, widths: Sequence[int] | None, scales: Sequence[float] | None) -> Tensor:
    """Rows of length 1, in the units of training if scales are given; zero rows become NaN."""
    if scales is not None and widths is None:
        raise ShapeError("Activation scales belong to sources: pass the widths of the sources with them.")
    widths = [W_dec.shape[-1]] if widths is None else list(widths)
    norms = decoder_norms(W_dec, widths, scales)
    rows = W_dec.detach().to(norms.dtype)
    if scales is not None:
        rows = rows * rows.new_tensor(list(scales)).repeat_interleave(torch.tensor(widths, device=rows.device))
    return rows / norms.norm(dim=-1, keepdim=True)
