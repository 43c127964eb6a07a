"""The check of one exported source: its files, their rows, and what the rows say of each other."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sae_lens_crosscoder.dashboards.neuronpedia.checks import check_row
from sae_lens_crosscoder.dashboards.neuronpedia.keys import KeySets, SeenKeys
from sae_lens_crosscoder.dashboards.neuronpedia.lines import read_rows
from sae_lens_crosscoder.dashboards.neuronpedia.problems import Findings, LineReport
from sae_lens_crosscoder.dashboards.neuronpedia.rules import check_rules
from sae_lens_crosscoder.dashboards.neuronpedia.schema import (
    ACTIVATION,
    MODEL,
    NEURON,
    RELEASE,
    SOURCE,
    SOURCE_SET,
    Table,
)

FILES = {"release.jsonl": RELEASE, "model.jsonl": MODEL, "sourceset.jsonl": SOURCE_SET, "source.jsonl": SOURCE}
FOLDERS = {"features": NEURON, "activations": ACTIVATION}
ROWS_ENDING = ".jsonl.gz"

# What a row's columns point to: the table, and the column there for each column here. Null points nowhere.
_POINTERS = {
    SOURCE_SET.name: [(RELEASE, ("releaseName",)), (MODEL, ("modelId",))],
    SOURCE.name: [(SOURCE_SET, ("modelId", "setName"))],
    NEURON.name: [(SOURCE, ("modelId", "layer")), (SOURCE_SET, ("modelId", "sourceSetName"))],
    ACTIVATION.name: [(NEURON, ("modelId", "layer", "index"))],
}


def source_folders(root: Path) -> list[Path]:
    """The folders, `root` or below it, that look like an exported source."""
    marks = [*FILES, *FOLDERS]
    return sorted({path.parent for mark in marks for path in root.rglob(mark)})


class SourceFolderCheck:
    """The rows of one source folder, in the order in which Neuronpedia imports them.

    Args:
        folder: `.../{model id}/{source id}`.
        findings: Where problems go.
        activation_ids: Ids of the activations of all folders, which share one table.
    """

    def __init__(self, folder: Path, findings: Findings, activation_ids: SeenKeys) -> None:
        self.folder = folder
        self.findings = findings
        self.activation_ids = activation_ids
        self.known: dict[str, set[Hashable]] = {}

    def check(self) -> None:
        """Report the problems of the folder."""
        for name, table in FILES.items():
            if (self.folder / name).is_file():
                self._check_rows(self.folder / name, table)
            else:
                self.findings.add(self.folder / name, 0, "", "the file is missing, and the import needs it")
        for name, table in FOLDERS.items():
            files = sorted((self.folder / name).glob("*")) if (self.folder / name).is_dir() else []
            rows_files = [file for file in files if file.name.endswith(ROWS_ENDING)]
            for file in files:
                if file not in rows_files:
                    self.findings.add(file, 0, "", f"only files that end in {ROWS_ENDING} are imported")
            if not rows_files:
                self.findings.add(self.folder / name, 0, "", f"there is no {ROWS_ENDING} file, so nothing is imported")
            title = f"Checking {name} of {self.folder.parent.name}"
            for file in tqdm(rows_files, desc=title, unit="file", disable=None, leave=False):
                self._check_rows(file, table)

    def _check_rows(self, file: Path, table: Table) -> None:
        report = self.findings.of_file(file)
        key_sets = KeySets()
        for line, row in read_rows(file, report):
            if isinstance(row, dict):
                key_sets.add(line, frozenset(row))  # pyright: ignore[reportUnknownArgumentType]
            is_good = check_row(row, table, lambda path, message, line=line: report(line, path, message))
            # Rows that point to a spoilt row are not spoilt themselves, so its key is known all the same.
            if isinstance(row, dict) and all(isinstance(row.get(name), (str, int)) for name in table.key):  # pyright: ignore[reportUnknownArgumentType]
                self._check_key(row, table, file, line)
            if is_good:
                self._check_relations(row, table, line, report)
        if table.name in {folder_table.name for folder_table in FOLDERS.values()}:
            key_sets.check(report)

    def _check_key(self, row: dict[str, Any], table: Table, file: Path, line: int) -> None:
        key = tuple(str(row[name]) for name in table.key)
        if table is ACTIVATION:
            self.activation_ids.add(key, file, line)
            return
        known = self.known.setdefault(table.name, set())
        if key in known:
            message = f"a second {table.name} {', '.join(key)}: Neuronpedia skips it without an error"
            self.findings.add(file, line, "", message)
        known.add(key)

    def _check_relations(self, row: dict[str, Any], table: Table, line: int, report: LineReport) -> None:
        check_rules(row, table, lambda path, message: report(line, path, message))
        self._check_pointers(row, table, line, report)
        place = (self.folder.parent.name, self.folder.name)
        if table is SOURCE and place != (row["modelId"], row["id"]):
            wanted = f"{row['modelId']}/{row['id']}"
            report(line, "id", f"the import looks for this source in a folder {wanted}, which this is not")

    def _check_pointers(self, row: dict[str, Any], table: Table, line: int, report: LineReport) -> None:
        for target, names in _POINTERS.get(table.name, []):
            values = [row.get(name) for name in names]
            if None in values:
                continue
            key = tuple(map(str, values))
            if key not in self.known.get(target.name, set()):
                report(line, names[-1], f"there is no {target.name} {', '.join(key)} before it: the import stops")
