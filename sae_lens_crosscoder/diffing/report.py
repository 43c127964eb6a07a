"""Figures and tables as one HTML file that opens without a network."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sae_lens_crosscoder.errors import ShapeError
from sae_lens_crosscoder.files import write_file

if TYPE_CHECKING:
    import plotly.graph_objects as go

Cell = str | int | float | bool | None
"""What a table holds; None and NaN are shown as a dash."""

# Whatever a page could load from elsewhere is refused, even if a figure asked for it.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "font-src data:; base-uri 'none'; form-action 'none'"
)

_BUTTONS = ["toImage", "zoom2d", "pan2d", "resetScale2d"]
"""Tools above a figure; plotly's full set has ones that send the figure to a service."""

_STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f6f7f9; color: #1f2328;
       font: 15px/1.5 Inter, 'Segoe UI', Helvetica, Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 24px 48px; }
h1 { font-size: 24px; margin: 0 0 18px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 10px; overflow-wrap: anywhere; }
section { background: #fff; border: 1px solid #e1e4e8; border-radius: 8px; padding: 18px 20px;
          margin: 0 0 20px; overflow-x: auto; }
p.note { margin: 0 0 10px; color: #5f6368; white-space: pre-line; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 5px 12px; text-align: left; vertical-align: top; border-bottom: 1px solid #eceef1; }
th { color: #5f6368; font-weight: 600; border-bottom: 2px solid #d5d9de; }
td { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tbody tr:hover { background: #f6f8fa; }
"""


@dataclass(frozen=True)
class ReportTable:
    """A table of a report.

    Raises:
        ShapeError: A row that has not one cell per column.
    """

    title: str
    """Heading above the table."""

    columns: Sequence[str]
    """Names of the columns."""

    rows: Sequence[Sequence[Cell]]
    """Cells of each row. Floats are shown with four significant digits; text as it is, invisible characters spelt."""

    note: str = ""
    """What a reader has to know to read the table, shown between heading and table; alone if there are no rows."""

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ShapeError(
                    f"Row {index} of the table {self.title!r} has {len(row)} cells, and there are "
                    f"{len(self.columns)} columns: {list(self.columns)}."
                )


def write_report_html(
    figures: go.Figure | Sequence[go.Figure], path: str | Path, title: str, tables: Sequence[ReportTable] = ()
) -> Path:
    """Write figures and tables to one self-contained HTML file and return its path.

    It opens with no network: plotly.js (about 5 MB) is part of the file, and the page forbids itself to load anything.
    Every text is escaped, because labels and tokens come from models and data sets that anyone may have written;
    control characters, line breaks, surrogates and marks that turn the reading direction are spelt out.

    Raises:
        SaveError: The file cannot be written; what was there before is untouched.
    """
    from plotly.offline import get_plotlyjs

    # A figure is itself iterable, over its parts, but no sequence.
    panels = list(figures) if isinstance(figures, Sequence) else [figures]
    parts = [f"<section>{_figure_html(panel)}</section>" for panel in panels]
    parts += [f"<section>{_table_html(table)}</section>" for table in tables]
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
{f"<script>{get_plotlyjs()}</script>" if panels else ""}
</head>
<body>
<main>
<h1>{_text(title)}</h1>
{chr(10).join(parts)}
</main>
</body>
</html>
"""
    return write_file(path, page.encode("utf-8"))


def _figure_html(figure: go.Figure) -> str:
    import plotly.io

    return str(
        plotly.io.to_html(
            figure,
            full_html=False,
            include_plotlyjs=False,
            config={"displaylogo": False, "responsive": True, "modeBarButtons": [_BUTTONS]},
        )
    )


def _table_html(table: ReportTable) -> str:
    note = f'<p class="note">{_text(table.note)}</p>' if table.note else ""
    above = f"<h2>{_text(table.title)}</h2>{note}"
    if not table.rows:
        return above
    is_numeric = [
        all(_is_number(row[column]) or row[column] is None for row in table.rows)
        for column in range(len(table.columns))
    ]
    kinds = [' class="number"' if numeric else "" for numeric in is_numeric]
    head = "".join(f"<th{kind}>{_text(name)}</th>" for kind, name in zip(kinds, table.columns, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"<td{kind}>{_cell(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in table.rows
    )
    return f"{above}<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)


def _cell(cell: Cell) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return _text(cell)


def _text(text: str) -> str:
    """Text as HTML: markup escaped, and characters that cannot be seen or that reorder the line spelt out."""
    return html.escape("".join(_visible(character) for character in text))


def _visible(character: str) -> str:
    if character == "\n":
        return "⏎"
    if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
        return character.encode("unicode_escape").decode("ascii")
    return character
