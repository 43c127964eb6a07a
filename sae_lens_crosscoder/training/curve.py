"""The training curve as a CSV file that grows with the run and goes on when it is resumed."""

from __future__ import annotations

import csv
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO


class TrainingCurve:
    """Writes one row a logged step: `step`, then the metrics in alphabetical order of the first row.

    Args:
        path: The CSV file; None writes nothing.
        n_steps_done: Steps that the run has made. Rows of an earlier run up to here are kept, later ones are dropped,
            because the resumed run makes those steps anew; 0 begins a new file.
    """

    def __init__(self, path: Path | None, n_steps_done: int = 0) -> None:
        self._path = path
        self._n_steps_done = n_steps_done
        self._file: TextIO | None = None
        self._writer: csv.DictWriter[str] | None = None

    def __enter__(self) -> TrainingCurve:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            kept, columns = self._earlier_rows()
            self._file = self._path.open("w", newline="")
            if columns:
                self._start(columns).writerows(kept)
        return self

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Add the row of a step; columns that the first row did not have are left out."""
        if self._file is not None:
            writer = self._writer or self._start(["step", *sorted(metrics)])
            writer.writerow({"step": step, **metrics})
            self._file.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _earlier_rows(self) -> tuple[list[dict[str, str]], list[str]]:
        if self._n_steps_done == 0 or self._path is None or not self._path.is_file():
            return [], []
        with self._path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if int(row["step"]) <= self._n_steps_done]
            return rows, list(reader.fieldnames or [])

    def _start(self, columns: list[str]) -> csv.DictWriter[str]:
        assert self._file is not None
        self._writer = csv.DictWriter(self._file, columns, extrasaction="ignore")
        self._writer.writeheader()
        return self._writer
