"""What rows have in common: keys that must be the same on every line, and keys that no two rows may share."""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterator
from pathlib import Path

import numpy as np

from sae_lens_crosscoder.dashboards.neuronpedia.problems import Findings, LineReport


class KeySets:
    """The names of columns on the lines of one file. Neuronpedia imports the columns of line 1 and no others."""

    def __init__(self) -> None:
        self._lines: dict[frozenset[str], list[int]] = {}

    def add(self, line: int, names: frozenset[str]) -> None:
        """Note which columns a line has."""
        self._lines.setdefault(names, []).append(line)

    def check(self, report: LineReport) -> None:
        """Report the lines that differ from most of the others."""
        if len(self._lines) < 2:
            return
        usual = max(self._lines, key=lambda names: len(self._lines[names]))
        effect = "the columns of line 1 are imported, for the whole file"
        for names, lines in self._lines.items():
            for line in lines if names != usual else ():
                for name in sorted(usual - names):
                    report(line, name, f"the other lines have this key and this one has not: {effect}")
                for name in sorted(names - usual):
                    report(line, name, f"this line has the key and the others have not: {effect}")


class SeenKeys:
    """Keys of rows, of which none may come twice; 24 bytes a row, whatever the length of the key."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._hashes = array("q")
        self._files: list[Path] = []
        self._file_numbers = array("q")
        self._lines = array("q")

    def add(self, key: Hashable, file: Path, line: int) -> None:
        """Note the key of a row, and where it stands."""
        if not self._files or self._files[-1] != file:
            self._files.append(file)
        self._hashes.append(hash(key))
        self._file_numbers.append(len(self._files) - 1)
        self._lines.append(line)

    def check(self, findings: Findings) -> None:
        """Report every row whose key stands before it already."""
        for number, first in self._repeats():
            file, line = self._place(first)
            name = file.relative_to(findings.root)
            findings.add(
                *self._place(number),
                "",
                f"the same {self._what} as {name}:{line}: Neuronpedia skips the row without an error",
            )

    def _repeats(self) -> Iterator[tuple[int, int]]:
        hashes = np.frombuffer(self._hashes, dtype=np.int64)
        order = np.argsort(hashes, kind="stable")
        equal = np.flatnonzero(hashes[order][1:] == hashes[order][:-1]) if len(order) else []
        for position in equal:
            yield int(order[position + 1]), int(order[position])

    def _place(self, number: int) -> tuple[Path, int]:
        return self._files[self._file_numbers[number]], self._lines[number]
