"""Warnings of this package as a line for whoever calls a command, and not as a line of Python."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


@contextmanager
def plain_warnings() -> Generator[None]:
    """Show this package's warnings as `warning: ...`; those of others stay as Python shows them."""
    shown_before = warnings.formatwarning

    def shown(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if Path(filename).is_relative_to(_PACKAGE):
            return f"warning: {message}\n"
        return shown_before(message, category, filename, lineno, line)

    warnings.formatwarning = shown
    try:
        yield
    finally:
        warnings.formatwarning = shown_before
