"""Which latents belong to one source and which to all: classes by relative decoder norm, with stated thresholds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lens_crosscoder.errors import ConfigError, ShapeError

SHARED = "shared"
OTHER = "other"
DEAD = "dead"
_RESERVED = (SHARED, OTHER, DEAD)


@dataclass(frozen=True)
class ClassThresholds:
    """Where the classes begin, on the scale of the relative decoder norm (a source's share of the summed norm).

    The two-source defaults: the shared band is that of Kissane et al. (2024), whose norms differ by less than a
    factor 7/3; exclusive is a norm at least nine times the other. Papers draw these lines at different places
    (`minder`), and the counts move with them, so whatever shows counts also shows `describe()`.

    Raises:
        ConfigError: Thresholds outside 0 < shared_low < shared_high <= exclusive_above < 1.
    """

    exclusive_above: float = 0.9
    """A latent belongs to one source alone if that source's share is above this. Higher: fewer, purer."""

    shared_low: float = 0.3
    """A latent is shared if every source's share is above this and below `shared_high`."""

    shared_high: float = 0.7
    """A latent is shared if every source's share is below this and above `shared_low`."""

    def __post_init__(self) -> None:
        if not 0 < self.shared_low < self.shared_high <= self.exclusive_above < 1:
            raise ConfigError(
                "Class thresholds must satisfy 0 < shared_low < shared_high <= exclusive_above < 1, and these are "
                f"shared_low={self.shared_low}, shared_high={self.shared_high}, "
                f"exclusive_above={self.exclusive_above}: a latent would be in two classes, or a class could hold none."
            )

    @classmethod
    def minder(cls) -> ClassThresholds:
        """The classes of Minder, Dumas et al. (2025), two sources: Delta beyond 0.1 / 0.9 exclusive, 0.4 to 0.6 shared.

        Their Delta divides by the larger norm, so these are 5/6 and 4/9 to 5/9 here: exclusive is a norm five times the
        other, shared one within a factor 5/4.
        """
        return cls(exclusive_above=5 / 6, shared_low=4 / 9, shared_high=5 / 9)

    @classmethod
    def for_n_sources(cls, n_sources: int) -> ClassThresholds:
        """The default norm ratios (7/3 and 9) carried over to any number of sources; for two, the defaults.

        A share shrinks as sources are added (an even latent has 1/n each), so that fixed numbers would empty the
        shared class. Here exclusive is one norm nine times all others, and the shared band reaches as far as norms
        that differ by 7/3.

        Raises:
            ConfigError: Fewer than two sources.
        """
        if n_sources < 2:
            raise ConfigError(f"Classes compare at least two sources, not {n_sources}.")
        n_others = n_sources - 1
        # Rounded, so that the figures in a report are the figures used (and 0.3, 0.7, 0.9 for two sources).
        return cls(
            exclusive_above=round(9 / (9 + n_others), 4),
            shared_low=round(3 / (3 + 7 * n_others), 4),
            shared_high=round(7 / (7 + 3 * n_others), 4),
        )

    def describe(self) -> str:
        """One line for reports that states the thresholds."""
        return (
            f"one source only: its share of the decoder norm > {self.exclusive_above:.3g}; "
            f"shared: all shares between {self.shared_low:.3g} and {self.shared_high:.3g}; other: the rest"
        )


def class_names(labels: Sequence[str]) -> tuple[str, ...]:
    """All classes in report order: the first source's, "shared", the other sources', "other", "dead".

    For labels "base" and "finetuned": `("base-only", "shared", "finetuned-only", "other", "dead")`.

    Raises:
        ConfigError: Fewer than two labels, empty or repeated ones.
    """
    if len(labels) < 2:
        raise ConfigError(f"Classes compare at least two sources, and the labels are {list(labels)}.")
    if len(set(labels)) < len(labels) or not all(label.strip() for label in labels):
        raise ConfigError(f"Every source needs a label of its own, and the labels are {list(labels)}.")
    first, *others = (f"{label}-only" for label in labels)
    return (first, SHARED, *others, OTHER, DEAD)


def classify_latents(
    relative_norms: Float[Tensor, " d_sae"] | Float[Tensor, "d_sae n_sources"],
    thresholds: ClassThresholds,
    labels: Sequence[str],
    dead: Bool[Tensor, " n_latents"] | None = None,
) -> list[str]:
    """The class name of every latent, by whose share of the decoder norm it has.

    `"<label>-only"` if that source's share is above `exclusive_above`, "shared" if all shares lie strictly between
    `shared_low` and `shared_high`, "dead" where `dead` is true whatever the norms are, "other" for the rest. A latent
    without any norm (NaN) is "other". Swapping the sources swaps the classes.

    Args:
        relative_norms: `relative_decoder_norms` (two sources: the second one's share) or `decoder_norm_shares`.
        thresholds: Where the classes begin.
        labels: Name of each source, in order.
        dead: Latents that stayed silent for as many tokens as the caller looked at. Their decoder stays near its
            initial value, which reads as shared, so counts without a mask may contain them.

    Raises:
        ShapeError: Not one column per label, or a mask of another length.
        ConfigError: Labels as in `class_names`; numbers that are no shares (outside [0, 1], or rows that do not sum to
            1); thresholds under which no latent of so many sources could be shared, or a band that is not symmetric
            about 1/2 for two sources.
    """
    names = class_names(labels)
    shares = _as_shares(relative_norms, labels)
    _require_fit(thresholds, len(labels))
    if dead is not None and dead.shape != shares.shape[:1]:
        raise ShapeError(
            f"The mask of dead latents has shape {tuple(dead.shape)}, and there are {len(shares)} latents."
        )
    own = [name for name in names if name not in _RESERVED]
    shares = shares.detach().to("cpu")
    # In the precision of the shares: 0.9 as a float32 is larger than Python's 0.9 and would count as above it.
    exclusive_above, shared_low, shared_high = shares.new_tensor(
        [thresholds.exclusive_above, thresholds.shared_low, thresholds.shared_high]
    )
    is_exclusive = shares > exclusive_above
    is_shared = ((shares > shared_low) & (shares < shared_high)).all(dim=-1)
    is_dead = shares.new_zeros(len(shares), dtype=torch.bool) if dead is None else dead.to("cpu")
    code = shares.new_full((len(shares),), len(own) + _RESERVED.index(OTHER), dtype=torch.long)
    code[is_shared] = len(own) + _RESERVED.index(SHARED)
    rows, columns = is_exclusive.nonzero(as_tuple=True)
    code[rows] = columns
    code[is_dead] = len(own) + _RESERVED.index(DEAD)
    by_code = (*own, *_RESERVED)
    return [by_code[index] for index in code.tolist()]


def class_counts(classes: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    """How many latents are in each class, in the order of `class_names`, zeros included; they add up to `d_sae`.

    "dead" is also 0 if `classify_latents` was given no mask.

    Raises:
        ConfigError: A class that does not come from these labels.
    """
    names = class_names(labels)
    counts = Counter(classes)
    if unknown := sorted(set(counts) - set(names)):
        raise ConfigError(f"Classes {unknown} do not come from the labels {list(labels)}; expected {list(names)}.")
    return {name: counts[name] for name in names}


def _as_shares(relative_norms: Tensor, labels: Sequence[str]) -> Tensor:
    """Shares of all sources, `(d_sae, n_sources)`, from those or from the relative norm of two sources."""
    if relative_norms.ndim == 1 and len(labels) == 2:
        shares = torch.stack([1 - relative_norms, relative_norms], dim=-1)
    elif relative_norms.ndim == 2 and relative_norms.shape[1] == len(labels):
        shares = relative_norms
    else:
        raise ShapeError(
            f"Relative norms of shape {tuple(relative_norms.shape)} do not fit the {len(labels)} labels "
            f"{list(labels)}: pass (d_sae, {len(labels)}) from decoder_norm_shares"
            + (", or (d_sae,) from relative_decoder_norms." if len(labels) == 2 else ".")
        )
    known = shares[~torch.isnan(shares).any(dim=-1)]
    if bool(((known < 0) | (known > 1)).any()) or bool(((known.sum(dim=-1) - 1).abs() > 1e-3).any()):
        raise ConfigError(
            "Relative decoder norms lie in [0, 1], and the shares of a latent sum to 1; these do not. Norms have to go "
            "through decoder_norm_shares or relative_decoder_norms first."
        )
    return shares


def _require_fit(thresholds: ClassThresholds, n_sources: int) -> None:
    """Raise if these thresholds cannot mean what they say for so many sources."""
    low, high = thresholds.shared_low, thresholds.shared_high
    if not low < 1 / n_sources < high:
        raise ConfigError(
            f"With {n_sources} sources an even latent has a share of {1 / n_sources:.3g} in each, outside the shared "
            f"band {low:.3g} to {high:.3g}, so no latent could be shared: take ClassThresholds.for_n_sources"
            f"({n_sources}) or another band."
        )
    if n_sources == 2 and abs(low + high - 1) > 1e-6:
        raise ConfigError(
            f"The shared band {low:.3g} to {high:.3g} is not symmetric about 0.5: with two sources a share above "
            f"{high:.3g} of one is a share below {1 - high:.3g} of the other, so that the band in use would be "
            "narrower than the one stated."
        )
