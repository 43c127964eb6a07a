"""Lines of JSON from a file, plain or gzipped; what cannot be read is reported at its line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_lens_crosscoder.dashboards.neuronpedia.problems import LineReport


class JsonFault(ValueError):
    """Text that is no JSON, or not as Neuronpedia reads it."""


def read_rows(file: Path, report: LineReport) -> Iterator[tuple[int, Any]]:
    """Line numbers from 1, and what stands there; a line that cannot be read is reported and passed over.

    Args:
        file: The file; one whose name ends in ".gz" is unpacked.
        report: Takes the line, a path inside it (always empty here) and a message.
    """
    line = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            for line, raw in enumerate(lines, start=1):
                try:
                    row = _parsed(raw)
                except JsonFault as error:
                    report(line, "", str(error))
                else:
                    yield line, row
    except (OSError, EOFError, zlib.error) as error:
        report(line + 1, "", f"the file cannot be read from here on: {error}")
        return
    if line == 0:
        report(0, "", "there is no line in the file, which stops the import")


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON from its keys and values.

    Raises:
        JsonFault: A key that stands twice: all but the last would be lost.
    """
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise JsonFault(f"the key {twice!a} stands twice in one object")
    return result


def _parsed(raw: bytes) -> Any:
    if not raw.strip():
        raise JsonFault("a blank line, which stops the import")
    if b"\\u0000" in raw:
        raise JsonFault("the six characters \\u0000, which Neuronpedia turns into a blank wherever they stand")
    try:
        return json.loads(raw.decode(), object_pairs_hook=without_duplicates)
    except UnicodeDecodeError as error:
        raise JsonFault(f"no UTF-8: {error}") from error
    except JsonFault:
        raise
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise JsonFault(f"no JSON: {error}") from error
