"""What the validator reports, and where it gathers that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_MOST_A_FILE = 100

Report = Callable[[str, str], None]
"""Takes a path inside a line, and a message."""

LineReport = Callable[[int, str, str], None]
"""Takes a line, a path inside it, and a message."""


@dataclass(frozen=True)
class Problem:
    """One thing that Neuronpedia would refuse, or would take and lose."""

    file: Path
    """File that holds it, below the folder that was checked."""

    line: int
    """Line in the file, from 1; 0 for the file as a whole."""

    path: str
    """Where in the line, such as "values[3]"; empty for the line as a whole."""

    message: str
    """What is wrong, and what it would cause."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else str(self.file)
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


class Findings:
    """The problems of a folder; of one file no more than 100 are kept, and how many there were."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[Problem] = []
        self._counts: Counter[Path] = Counter()

    def add(self, file: Path, line: int, path: str, message: str) -> None:
        """Note one problem of a file, which is named as it stands below the root."""
        name = file.relative_to(self.root)
        self._counts[name] += 1
        if self._counts[name] <= _MOST_A_FILE:
            self.problems.append(Problem(name, line, path, message))

    def of_file(self, file: Path) -> LineReport:
        """What notes problems of one file."""
        return lambda line, path, message: self.add(file, line, path, message)

    def all(self) -> list[Problem]:
        """The problems by file and line, and a last one for each file with more of them."""
        more = [
            Problem(name, 0, "", f"{count - _MOST_A_FILE} more problems in this file")
            for name, count in self._counts.items()
            if count > _MOST_A_FILE
        ]
        return sorted(self.problems, key=lambda problem: (str(problem.file), problem.line)) + more
