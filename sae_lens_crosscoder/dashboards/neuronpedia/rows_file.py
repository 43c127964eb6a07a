"""Files of rows in the form of Neuronpedia's importer: gzipped lines of JSON."""

from __future__ import annotations

import gzip
import json
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from sae_lens_crosscoder.dashboards.neuronpedia.records import Row

_ROWS_A_FILE = 1_024
_COMPRESSION = 5


class RowsWriter:
    """Writes rows to `batch-{i}.jsonl.gz`, 1,024 to a file, the same rows always to the same bytes.

    Args:
        folder: Where to write; it is made with the first row.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._n_rows = 0
        self._files = ExitStack()
        self._file: gzip.GzipFile | None = None

    def __enter__(self) -> RowsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def write(self, row: Row) -> None:
        """Write a row behind the others."""
        if self._file is None or self._n_rows % _ROWS_A_FILE == 0:
            self._file = self._next_file()
        self._file.write(row_bytes(row))
        self._n_rows += 1

    def _next_file(self) -> gzip.GzipFile:
        self._files.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"batch-{self._n_rows // _ROWS_A_FILE}.jsonl.gz"
        raw: BinaryIO = self._files.enter_context(path.open("wb"))
        # The name and the time that gzip keeps would differ from export to export.
        return self._files.enter_context(gzip.GzipFile("", "wb", _COMPRESSION, raw, mtime=0))


def row_bytes(row: Row) -> bytes:
    """A row as one line of JSON."""
    # The importer blanks the six characters \u0000 even where they are a backslash and a word of the text.
    text = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("\\\\u0000", "\\u005cu0000").encode() + b"\n"
