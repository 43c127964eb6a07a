"""What the first page of a report says and draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class KeyFigure:
    """One number that the first page shows large."""

    title: str
    value: str | int | float
    meaning: str = ""


@dataclass(frozen=True)
class Overview:
    """What the first page says and draws."""

    paragraphs: Sequence[str] = ()
    """The findings in words."""

    key_figures: Sequence[KeyFigure] = ()
    """The findings in numbers; how many latents each class has is counted by the page itself."""

    histograms: Sequence[str] = ()
    """Names of the numeric columns whose histograms are drawn first; the reader can choose others."""

    scatter: tuple[str, str] | None = None
    """Names of the numeric columns on the x and y axis of the scatter that is drawn first."""
