"""Names and numbers as Markdown that means only what it says: nothing in a name can be a link, a tag or a table."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_MARKUP = re.compile(
    r"""[!#$%&*<>?@\[\]\\^`{|}~]        # what Markdown, HTML and formulas are made of
    | :(?=//) | (?<=www)\.              # addresses become links by themselves
    | (?<![^\W_])_ | _(?![^\W_])        # underscores stress words unless they stand inside of one
    """,
    re.VERBOSE | re.IGNORECASE,
)
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}

Cell = str | int | float | None
"""What a table holds; None is an empty cell, and texts are escaped."""


def plain(text: str) -> str:
    """A text of unknown origin, escaped: markup becomes character references, invisible characters are spelt out."""
    visible = "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _INVISIBLE
        else character
        for character in text
    )
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", visible)


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table; numbers stand on the right."""
    right = [all(not isinstance(row[n], str) for row in rows) for n in range(len(columns))]
    lines = [columns, ["---:" if is_right else "---" for is_right in right], *([_cell(c) for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str):
        return plain(cell)
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}"
