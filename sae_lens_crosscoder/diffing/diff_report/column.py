"""One column of the table of latents: a quantity for every latent, with the words that explain it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.errors import ConfigError, ShapeError

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
