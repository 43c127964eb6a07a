"""What is known of latents beside their dashboards: the table of a finished diff, or what the decoder says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lens_crosscoder.dashboards.subject import DashboardSubject
from sae_lens_crosscoder.diffing import (
    ClassThresholds,
    PairGeometry,
    classify_latents,
    decoder_norm_shares,
    decoder_norms,
)
from sae_lens_crosscoder.diffing.classes import DEAD
from sae_lens_crosscoder.diffing.diff_report import Column, LatentTable
from sae_lens_crosscoder.diffing.diff_report.decoder_columns import GROUP, norm_columns, pair_columns
from sae_lens_crosscoder.diffing.diff_report.latent_table import PARQUET
from sae_lens_crosscoder.errors import ConfigError, DataError
from sae_lens_crosscoder.sources import Sources

_HEADLINES = ("class", "relative_norm", "cosine", "nu_error", "nu_reconstruction", "scaling_flag")
"""Columns that headings and the index show, where they are there."""


def latent_facts(subject: DashboardSubject, folder: str | Path | None = None) -> list[Column]:
    """The columns of the table that a diff wrote into the folder; without one, what the decoder says.

    Raises:
        DataError: A table of another crosscoder.
    """
    own = decoder_facts(subject.directions, subject.joint.sources, subject.dead)
    if folder is None or not (Path(folder) / PARQUET).is_file():
        return own
    table = LatentTable.load(folder)
    if table.d_sae != len(subject.directions) or not _same_norms(own, table.columns):
        raise DataError(
            f"{Path(folder) / PARQUET} is a diff of another crosscoder: its number of latents ({table.d_sae:,}, here "
            f"{len(subject.directions):,}) or their relative norms differ. Run `diff` again, or move it away."
        )
    return list(table.columns)


def _same_norms(own: Sequence[Column], found: Sequence[Column]) -> bool:
    """Whether relative norms agree where both tables have them, whichever source the diff started from."""
    one, other = (
        next((column.values for column in columns if column.name == "relative_norm"), None) for columns in (own, found)
    )
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return True
    known = one.isfinite() & other.isfinite()
    one, other = one[known].double(), other[known].double()
    return any(torch.allclose(one, norms, rtol=0, atol=1e-3) for norms in (other, 1 - other))


def decoder_facts(
    directions: Float[Tensor, "d_sae d_in"], sources: Sources, dead: Bool[Tensor, " n_latents"] | None = None
) -> list[Column]:
    """The classes and norms of the decoder; for two sources the relative norm and the cosine too.

    Args:
        directions: The flat decoder.
        sources: Which columns belong to which source.
        dead: Latents that were dead at the end of training.
    """
    labels = sources.labels
    if sources.combine == "difference":
        meaning = f"Norm of the latent's row, which is of the difference {labels[1]} minus {labels[0]}."
        return [Column("norm", directions.norm(dim=1).cpu(), "norm", meaning, GROUP)]
    directions = directions.cpu()
    columns: list[Column] = []
    if len(sources) == 2:
        columns += pair_columns(PairGeometry.from_sources(directions, sources, dead=dead))
    elif len(sources) > 2:
        thresholds = ClassThresholds.for_n_sources(len(sources))
        shares = decoder_norm_shares(decoder_norms(directions, sources.widths, sources.activation_scales))
        classes = classify_latents(shares, thresholds, labels, dead)
        columns.append(Column("class", classes, "class", thresholds.describe(), GROUP))
    return [*columns, *norm_columns(directions, sources)]


def headline_columns(facts: Sequence[Column]) -> list[Column]:
    """The few columns that say most of a latent; all where there are none of these."""
    return [column for name in _HEADLINES for column in facts if column.name == name] or list(facts)


def dead_latents(subject: DashboardSubject, facts: Sequence[Column]) -> Bool[Tensor, " d_sae"]:
    """Latents that have nothing to show: they never fired, in training or in the diff, or their decoder row is zero.

    Args:
        subject: The crosscoder, and what its training knows of dead latents.
        facts: Columns; those of a diff say on which share of its tokens a latent fired.
    """
    dead = torch.linalg.vector_norm(subject.directions, ord=torch.inf, dim=1).cpu() == 0
    if subject.dead is not None:
        dead |= subject.dead.cpu()
    for column in facts:
        if column.name == "frequency" and isinstance(column.values, Tensor):
            dead |= column.values.cpu() == 0
        elif column.name == "class":
            dead |= torch.tensor([name == DEAD for name in column.values])
    return dead


def first_latents(
    facts: Sequence[Column],
    n: int,
    by: str | None = None,
    ascending: bool = False,
    dead: Bool[Tensor, " d_sae"] | None = None,
) -> list[int]:
    """The latents with the largest values in a column (or the smallest); NaN counts as none.

    Args:
        facts: The columns.
        n: How many.
        by: Name of the column; the relative norm if left out, or the first column of numbers where there is none.
        ascending: Whether the smallest values come first.
        dead: Latents to leave out (`dead_latents`).

    Raises:
        ConfigError: No such column of numbers, fewer than one latent, or none that is alive and has a value.
    """
    if n < 1:
        raise ConfigError(f"The first {n} latents are none: ask for at least one.")
    numbers = {column.name: column.values for column in facts if isinstance(column.values, Tensor)}
    if by is None:
        by = "relative_norm" if "relative_norm" in numbers else next(iter(numbers))
    if by not in numbers:
        raise ConfigError(f"There is no column of numbers {by!r} to go by. There are {', '.join(numbers)}.")
    values = numbers[by].double()
    is_candidate = torch.isfinite(values).cpu()
    if dead is not None:
        is_candidate &= ~dead.cpu()
    finite = is_candidate.nonzero()[:, 0].to(values.device)
    if not len(finite):
        raise ConfigError(f"Of {len(values):,} latents none is alive with a value in {by!r}: name some by --latents.")
    return finite[values[finite].argsort(descending=not ascending, stable=True)[:n]].tolist()


def parse_latents(text: str, d_sae: int) -> list[int]:
    """`1,2,5-9` as [1, 2, 5, 6, 7, 8, 9], and `all` as all of the `d_sae` latents that there are.

    Raises:
        ConfigError: Something that is neither a number nor a range, or latents that there are not.
    """
    if text == "all":
        return list(range(d_sae))
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ConfigError(f"{part!r} in {text!r} is no latent: write indices and ranges, such as 1,2,5-9.")
        if int(last or first) >= d_sae:
            raise ConfigError(f"{part!r} in {text!r} is beyond the last latent: name some from 0 to {d_sae - 1}.")
        found += range(int(first), int(last or first) + 1)
    return found


def described(columns: Sequence[Column], latent: int) -> dict[str, str]:
    """What the columns say of one latent, by their titles; values that are not defined are left out."""
    texts: dict[str, str] = {}
    for column in columns:
        value = column.values[latent]
        if isinstance(value, Tensor):
            number = float(value)
            if number == number:
                texts[column.title] = f"{number:.2%}" if column.format == "percent" else f"{number:.3g}"
        elif value:
            texts[column.title] = value
    return texts
