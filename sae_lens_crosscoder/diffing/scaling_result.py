"""What latent scaling says: beta, nu, and which exclusive latents are artefacts of the sparsity penalty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class ScalingThresholds:
    """Where a ratio nu is believed, and where it tells an artefact.

    The range is that of Minder, Dumas et al. (2025), whose code keeps -0.1 to 2. The two lines are conventions: nu runs
    smoothly from 0 (only in the probe source) to 1 (as much in the other), so whatever shows counts also shows
    `describe()`.

    Raises:
        ConfigError: Lines outside the range, or a range that is empty.
    """

    nu_low: float = -0.1
    """A latent is left out if its nu is below: another direction than its own was measured."""

    nu_high: float = 2.0
    """A latent is left out if its nu is above: the probe source has hardly any of it, and nu is a ratio of noise."""

    complete_shrinkage_above: float = 0.2
    """nu of the error above this in an exclusive latent: the other source has it too, and its norm was shrunk away."""

    latent_decoupling_above: float = 0.5
    """nu of the reconstruction above this in an exclusive latent: other latents write the same for the other source."""

    def __post_init__(self) -> None:
        lines = (self.complete_shrinkage_above, self.latent_decoupling_above)
        if not self.nu_low < min(lines) or not max(lines) < self.nu_high:
            raise ConfigError(
                f"The lines {lines[0]} and {lines[1]} must lie inside the range of nu that is kept, {self.nu_low} to "
                f"{self.nu_high}: outside it, no latent could be told from an artefact."
            )

    def describe(self) -> str:
        """One line for reports that states the thresholds."""
        return (
            f"kept: nu between {self.nu_low:g} and {self.nu_high:g}; complete shrinkage: nu of the error > "
            f"{self.complete_shrinkage_above:g}; latent decoupling: nu of the reconstruction > "
            f"{self.latent_decoupling_above:g}"
        )


@dataclass(frozen=True)
class ScalingFlags:
    """The latents that decoder norms call exclusive to the probe source, sorted by what latent scaling says of them."""

    thresholds: ScalingThresholds
    """The thresholds that the masks were made with."""

    unreliable: Bool[Tensor, " d_sae"]
    """Exclusive by norm, but a nu is outside the range that is kept or, for a latent that never fired, undefined."""

    complete_shrinkage: Bool[Tensor, " d_sae"]
    """Exclusive by norm, but the other source's error contains the latent."""

    latent_decoupling: Bool[Tensor, " d_sae"]
    """Exclusive by norm, but the other source's reconstruction contains it, by other latents."""

    confirmed: Bool[Tensor, " d_sae"]
    """Exclusive by norm and none of the above."""

    @property
    def counts(self) -> dict[str, int]:
        """Latents per mask. A latent can be of complete shrinkage and latent decoupling at once."""
        names = ("confirmed", "complete_shrinkage", "latent_decoupling", "unreliable")
        return {name: int(getattr(self, name).sum()) for name in names}


@dataclass(frozen=True)
class LatentScalingResult:
    """Beta of every latent for every source and target (see `latent_scaling`), and the ratios nu."""

    probe: str
    """Label of the source whose decoder direction was used."""

    beta: Mapping[str, Mapping[str, Float[Tensor, " d_sae"]]]
    """By source label and target ("error", "reconstruction", "activation", "activation_no_bias"), float64."""

    n_active: Int[Tensor, " d_sae"]
    """Tokens that each latent fired on."""

    n_tokens: int
    """Tokens that were added."""

    def nu(self, target: str, source: str | None = None) -> Float[Tensor, " d_sae"]:
        """`beta[source][target] / beta[probe][target]`: 0 is only in the probe source, 1 as much in the other.

        Args:
            target: Which beta.
            source: Label of the source that is compared with the probe; may be left out if there is only one other.

        Raises:
            ConfigError: A target or source that is not there, the probe itself, or several others and none named.
        """
        others = [label for label in self.beta if label != self.probe]
        if source is None and len(others) == 1:
            source = others[0]
        if source not in others:
            raise ConfigError(
                f"nu compares {self.probe!r}, the probe, with one of {', '.join(map(repr, others))}, and the source "
                f"given is {source!r}: name one of them."
            )
        if target not in self.beta[source]:
            raise ConfigError(
                f"There is no target {target!r} here, only {', '.join(map(repr, self.beta[source]))}. (A difference "
                "SAE reconstructs no model by itself, so it has the activations only.)"
            )
        return self.beta[source][target] / self.beta[self.probe][target]

    @property
    def nu_error(self) -> Float[Tensor, " d_sae"]:
        """The nu^epsilon of the one other source: near 0 if its error has nothing of the latent."""
        return self.nu("error")

    @property
    def nu_reconstruction(self) -> Float[Tensor, " d_sae"]:
        """The nu^r of the one other source: near 0 if no other latent writes it there."""
        return self.nu("reconstruction")

    @property
    def nu_activation(self) -> Float[Tensor, " d_sae"]:
        """The nu of the one other source's activation: the ratio that a difference SAE has."""
        return self.nu("activation")

    def kept(self, thresholds: ScalingThresholds | None = None, source: str | None = None) -> Bool[Tensor, " d_sae"]:
        """Latents whose nu of the error and of the reconstruction both lie in the range that is kept."""
        thresholds = thresholds or ScalingThresholds()
        ratios = torch.stack([self.nu("error", source), self.nu("reconstruction", source)])
        # NaN compares false, so an undefined nu is not kept.
        return ((ratios >= thresholds.nu_low) & (ratios <= thresholds.nu_high)).all(dim=0)

    def flags(
        self,
        exclusive: Bool[Tensor, " n_latents"],
        thresholds: ScalingThresholds | None = None,
        source: str | None = None,
    ) -> ScalingFlags:
        """Which latents that norms call exclusive are artefacts: complete shrinkage and latent decoupling.

        Args:
            exclusive: True for latents that are exclusive to the *probe* source by their decoder norms, such as
                `[name == f"{probe}-only" for name in geometry.classes]`.
            thresholds: Where an artefact begins.
            source: As for `nu`.

        Raises:
            ShapeError: A mask of another length.
            ConfigError: As for `nu`.
        """
        thresholds = thresholds or ScalingThresholds()
        exclusive = self._mask(exclusive)
        kept = exclusive & self.kept(thresholds, source)
        shrunk = kept & (self.nu("error", source) > thresholds.complete_shrinkage_above)
        decoupled = kept & (self.nu("reconstruction", source) > thresholds.latent_decoupling_above)
        return ScalingFlags(
            thresholds=thresholds,
            unreliable=exclusive & ~kept,
            complete_shrinkage=shrunk,
            latent_decoupling=decoupled,
            confirmed=kept & ~shrunk & ~decoupled,
        )

    def rank_sum(
        self,
        among: Bool[Tensor, " n_latents"] | None = None,
        thresholds: ScalingThresholds | None = None,
        source: str | None = None,
    ) -> Float[Tensor, " d_sae"]:
        """Rank by nu of the error plus rank by nu of the reconstruction, from 2: lowest is the most exclusive latent.

        Ranks are among the latents that are kept and in `among`; equal values share the mean of their ranks. NaN for
        all other latents.

        Raises:
            ShapeError: A mask of another length.
            ConfigError: As for `nu`.
        """
        ranked = self.kept(thresholds, source)
        if among is not None:
            ranked = ranked & self._mask(among)
        result = torch.full_like(self.beta[self.probe]["activation"], torch.nan)
        result[ranked] = sum(mean_ranks(self.nu(target, source)[ranked]) for target in ("error", "reconstruction"))
        return result

    def _mask(self, mask: Tensor) -> Tensor:
        if mask.shape != self.n_active.shape:
            raise ShapeError(f"The mask has shape {tuple(mask.shape)}, and there are {len(self.n_active)} latents.")
        return mask.to(self.n_active.device)


def mean_ranks(values: Tensor) -> Tensor:
    """Ranks from 1 in float64; equal values share the mean of their ranks."""
    _, group, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(dim=0).double()
    return (last - (counts - 1) / 2)[group]
