"""Metrics by step as a CSV file that grows with the run and goes on when it is resumed."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from sae_lens_crosscoder.files import write_file


class StepTable:
    """Writes one row a step: `step`, then the metrics in alphabetical order of the first row.

    Args:
        path: The CSV file; None writes nothing. It is made with the first row; one of another run is removed at once.
        n_steps_done: Steps that the run has made. Rows of an earlier run up to here are kept, later ones are dropped,
            because the resumed run makes those steps anew; 0 begins a new file.
    """

    def __init__(self, path: Path | None, n_steps_done: int = 0) -> None:
        self._path = path
        self._n_steps_done = n_steps_done
        self._file: TextIO | None = None
        self._columns: list[str] = []

    def __enter__(self) -> StepTable:
        if self._path is not None and self._n_steps_done == 0:
            self._path.unlink(missing_ok=True)
        return self

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Add the row of a step; columns that the first row did not have are left out."""
        if self._path is None:
            return
        row = {"step": step, **metrics}
        if self._file is None:
            self._file = self._begin(self._path, list(row))
        csv.DictWriter(self._file, self._columns, extrasaction="ignore").writerow(row)
        self._file.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _begin(self, path: Path, columns: list[str]) -> TextIO:
        """Open the file and write what stands before the first new row."""
        kept: list[dict[str, str]] = []
        self._columns = ["step", *sorted(name for name in columns if name != "step")]
        if self._n_steps_done > 0 and path.is_file():
            whole, _, _ = path.read_text().rpartition("\n")  # a killed process may have left half a line
            reader = csv.DictReader(whole.splitlines())
            kept = [row for row in reader if int(row["step"]) <= self._n_steps_done]
            self._columns = list(reader.fieldnames or self._columns)
        begin = io.StringIO()
        writer = csv.DictWriter(begin, self._columns)
        writer.writeheader()
        writer.writerows(kept)
        write_file(path, begin.getvalue().encode())
        return path.open("a", newline="")
