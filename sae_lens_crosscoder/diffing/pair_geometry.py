"""The decoder geometry of two sources in one object: what the figures draw and a report states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lens_crosscoder.diffing.classes import SHARED, ClassThresholds, class_counts, class_names, classify_latents
from sae_lens_crosscoder.diffing.geometry import decoder_cosine, decoder_norms, relative_decoder_norms
from sae_lens_crosscoder.errors import ShapeError, SourceError
from sae_lens_crosscoder.sources import Sources


@dataclass(frozen=True)
class PairGeometry:
    """Relative decoder norm, decoder cosine and class of every latent, for two sources.

    `PairGeometry.from_decoder` measures it. Built directly, it takes any two sources of a crosscoder with more.

    Raises:
        ShapeError: Norms, cosines and classes of different numbers of latents, or other than two labels.
        ConfigError: Classes that do not come from the labels.
    """

    labels: Sequence[str]
    """Names of the two sources, the base first."""

    relative_norms: Float[Tensor, " d_sae"]
    """Share of the second source in the summed decoder norm; NaN for a latent without any."""

    cosines: Float[Tensor, " n_latents"] | None
    """Cosine of the two decoder vectors, NaN where one is zero; None for sources of different width."""

    classes: Sequence[str]
    """Class of every latent, from `classify_latents`."""

    thresholds: ClassThresholds
    """The thresholds that the classes were made with."""

    def __post_init__(self) -> None:
        if len(self.labels) != 2:
            raise ShapeError(f"A pair has two labels, not {len(self.labels)}: {list(self.labels)}.")
        d_sae = len(self.relative_norms)
        if len(self.classes) != d_sae or (self.cosines is not None and len(self.cosines) != d_sae):
            n_cosines = "no" if self.cosines is None else len(self.cosines)
            raise ShapeError(
                f"There are {d_sae} relative norms, {n_cosines} cosines and {len(self.classes)} classes: pass one of "
                "each for every latent."
            )
        class_counts(self.classes, self.labels)

    @classmethod
    def from_decoder(
        cls,
        W_dec: Float[Tensor, "d_sae d_in"],
        widths: Sequence[int],
        labels: Sequence[str],
        thresholds: ClassThresholds | None = None,
        scales: Sequence[float] | None = None,
        dead: Bool[Tensor, " n_latents"] | None = None,
    ) -> PairGeometry:
        """Measure the flat decoder of a crosscoder with two sources.

        Args:
            W_dec: The flat decoder.
            widths: Columns of each source.
            labels: Name of each source, the base first.
            thresholds: Where the classes begin; the defaults of `ClassThresholds` if left out.
            scales: Activation scale per source that was folded into the weights (see `decoder_norms`).
            dead: Latents that never fired (see `classify_latents`).

        Raises:
            ShapeError: Widths, labels, scales and mask that do not fit the decoder.
            ConfigError: What `decoder_norms` and `classify_latents` refuse.
        """
        if len(widths) != 2:
            raise ShapeError(
                f"The decoder has {len(widths)} sources, and a pair has two: take the columns of two of them, or "
                "measure with decoder_norm_shares and classify_latents."
            )
        thresholds = thresholds or ClassThresholds()
        relative_norms = relative_decoder_norms(decoder_norms(W_dec, widths, scales))
        return cls(
            labels=labels,
            relative_norms=relative_norms,
            cosines=decoder_cosine(W_dec, widths) if widths[0] == widths[1] else None,
            classes=classify_latents(relative_norms, thresholds, labels, dead),
            thresholds=thresholds,
        )

    @classmethod
    def from_sources(
        cls,
        W_dec: Float[Tensor, "d_sae d_in"],
        sources: Sources,
        labels: Sequence[str] | None = None,
        thresholds: ClassThresholds | None = None,
        dead: Bool[Tensor, " n_latents"] | None = None,
    ) -> PairGeometry:
        """Measure two sources of a crosscoder, in the units that it was trained in (see `decoder_norms`).

        Args:
            W_dec: The flat decoder.
            sources: Which columns belong to which source (`Sources.from_metadata(sae.cfg.metadata)`).
            labels: The two sources, the base first; may be left out if there are only two.
            thresholds: Where the classes begin.
            dead: Latents that never fired.

        Raises:
            SourceError: No source is called so; other than two sources and no labels; an SAE on a difference.
            ShapeError: What `from_decoder` refuses.
        """
        if sources.combine == "difference":
            raise SourceError("This SAE was trained on a difference: its decoder has one part, and nothing to compare.")
        labels = sources.labels if labels is None else list(labels)
        if len(labels) != 2:
            raise SourceError(f"A pair is two sources, and these are {', '.join(labels)}: name two, the base first.")
        pair = [sources[sources.position(label)] for label in labels]
        is_whole = tuple(labels) == tuple(sources.labels)
        return cls.from_decoder(
            W_dec if is_whole else torch.cat([W_dec[:, sources.columns(label)] for label in labels], dim=1),
            [source.d_in for source in pair],
            labels,
            thresholds,
            [source.activation_scale for source in pair],
            dead,
        )

    @property
    def counts(self) -> dict[str, int]:
        """Number of latents per class, in report order; they add up to `d_sae`."""
        return class_counts(self.classes, self.labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes in report order."""
        return class_names(self.labels)

    @property
    def shared_cosines(self) -> Float[Tensor, " n_shared"] | None:
        """Decoder cosine of the shared latents only; None for sources of different width."""
        if self.cosines is None:
            return None
        is_shared = torch.tensor([name == SHARED for name in self.classes], dtype=torch.bool)
        return self.cosines[is_shared.to(self.cosines.device)]
