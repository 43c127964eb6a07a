"""What the first page of a report says and draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sae_lens_crosscoder.diffing.report import ReportTable


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

    tables: Sequence[ReportTable] = ()
    """Findings that are tables of their own; the first cell of a row says what it is about."""

    scatter: tuple[str, str] | None = None
    """Names of the numeric columns on the x and y axis of the scatter that is drawn first."""
