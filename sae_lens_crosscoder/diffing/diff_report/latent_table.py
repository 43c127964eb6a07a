"""The table of a diffing run: one row a latent, one described column a quantity."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.diffing.classes import class_names
from sae_lens_crosscoder.errors import ConfigError, NotFoundError, ShapeError

if TYPE_CHECKING:
    import pandas as pd

INDEX = "latent"
"""Name of the first column in files and data frames: the latent's index."""

Values = Float[Tensor, " d_sae"] | Int[Tensor, " d_sae"] | Bool[Tensor, " d_sae"] | Sequence[str]


@dataclass(frozen=True, eq=False)
class Column:
    """One quantity for every latent, with the words that explain it.

    Raises:
        ConfigError: A name that is empty, `latent`, or holds other characters than letters, digits, `_`, `.`, `-`.
        ShapeError: Values that are no vector.
    """

    name: str
    """Name in files and in filters ("nu_error"); `class` is the one that figures are coloured by."""

    values: Values
    """One value a latent. Numbers that are not defined are NaN; text is for classes and other names."""

    title: str
    """Heading, as short as it can be ("ν error")."""

    meaning: str
    """One sentence: what the number is, its unit and which way it points."""

    group: str
    """Heading under which related columns stand ("Latent scaling")."""

    format: Literal["number", "percent"] = "number"
    """How the page writes it; files always hold the plain number."""

    scale: Literal["linear", "log"] = "linear"
    """Axis of the figures; zeros and negative values have no place on a logarithmic one, which says how many."""

    shown: bool = True
    """Whether the table of the page begins with it; the reader can show and hide any column."""

    def __post_init__(self) -> None:
        if self.name == INDEX or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", self.name):
            raise ConfigError(
                f"{self.name!r} cannot name a column: filters and files need a letter, then letters, digits, '_', '.' "
                f"or '-', and {INDEX!r} is the index."
            )
        if isinstance(self.values, Tensor) and self.values.ndim != 1:
            raise ShapeError(
                f"The column {self.name!r} has shape {tuple(self.values.shape)}: pass one value a latent, (d_sae,)."
            )

    @property
    def is_text(self) -> bool:
        """Whether the values are strings."""
        return not isinstance(self.values, Tensor)


@dataclass(frozen=True, eq=False)
class LatentTable:
    """Columns of equal length, row j being latent j, with the labels and thresholds that they were made with.

    Raises:
        ShapeError: No column, or columns of different length.
        ConfigError: Two columns of one name (upper and lower case count as the same), or labels as in `class_names`.
    """

    columns: Sequence[Column]
    """In the order in which the page shows them; columns of one group stand together."""

    labels: Sequence[str]
    """Names of the sources, the base first."""

    thresholds: Mapping[str, str | float] = field(default_factory=dict[str, str | float])
    """What the classes and flags were drawn at, by name; stored in the parquet file and shown on the page."""

    def __post_init__(self) -> None:
        class_names(self.labels)
        if not self.columns or len({len(column.values) for column in self.columns}) > 1:
            lengths = {column.name: len(column.values) for column in self.columns}
            raise ShapeError(f"A table needs columns with one value for every latent, and these have {lengths}.")
        names = [column.name.lower() for column in self.columns]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"Several columns are named {repeated}: a filter or a file could not tell them apart.")

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return len(self.columns[0].values)

    @property
    def names(self) -> list[str]:
        """Names of the columns, in order, without the index."""
        return [column.name for column in self.columns]

    def column(self, name: str) -> Column:
        """The column of this name.

        Raises:
            ConfigError: There is none.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise ConfigError(f"There is no column {name!r}; the table has {', '.join(self.names)}.")

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with the column `latent` first; `attrs` holds the labels and the thresholds."""
        from sae_lens_crosscoder.diffing.diff_report.table_files import to_arrow

        frame = to_arrow(self).to_pandas()
        frame.attrs = {"labels": list(self.labels), "thresholds": dict(self.thresholds)}
        return frame

    @classmethod
    def load(cls, path: str | Path) -> LatentTable:
        """The table that `DiffReport.save` wrote, with its labels, thresholds and descriptions.

        Args:
            path: `latents.parquet`, or the folder it is in.

        Raises:
            NotFoundError: There is no such file.
            DataError: The parquet file holds no table of this package.
        """
        from sae_lens_crosscoder.diffing.diff_report.table_files import PARQUET, from_parquet

        file = Path(path) / PARQUET if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise NotFoundError(f"There is no table of latents at {file}; DiffReport.save writes one.")
        return from_parquet(file)
