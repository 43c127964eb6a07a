"""The check of one body of POST /api/feature/upload-batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sae_lens_crosscoder.dashboards.neuronpedia.checks import check_row
from sae_lens_crosscoder.dashboards.neuronpedia.keys import SeenKeys
from sae_lens_crosscoder.dashboards.neuronpedia.lines import JsonFault, without_duplicates
from sae_lens_crosscoder.dashboards.neuronpedia.problems import Findings
from sae_lens_crosscoder.dashboards.neuronpedia.schema import PAYLOAD

_BLANK = " \t\n\r"


def payload_files(root: Path) -> list[Path]:
    """The payloads in a folder and below it, in the order in which they are uploaded."""
    return sorted(root.rglob("payload-*.json"), key=lambda file: (str(file.parent), _number(file), file.name))


def check_payload(file: Path, findings: Findings, features: SeenKeys) -> None:
    """Report the problems of a payload; those of a latent at the line where its object begins."""
    reader = _Reader(file)
    try:
        payload = reader.read()
    except JsonFault as error:
        findings.add(file, reader.line(), "", str(error))
        return

    def report(path: str, message: str) -> None:
        findings.add(file, reader.lines.get(path.partition(".")[0], 1), path, message)

    if check_row(payload, PAYLOAD, report):
        for number, feature in enumerate(payload["features"]):
            key = (payload["modelId"], payload["source"], feature["index"])
            features.add(key, file, reader.lines[f"features[{number}]"])


def _number(file: Path) -> int:
    digits = file.stem.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1


class _Reader:
    """A JSON object that is read piece by piece, so that the line of each piece is known.

    `lines` has the lines of the object's keys ("modelId"), and of the entries of its arrays ("features[3]").
    """

    def __init__(self, file: Path) -> None:
        self.lines: dict[str, int] = {}
        self._raw = file.read_bytes()
        self._text = ""
        self._at = 0
        self._decoder = json.JSONDecoder(object_pairs_hook=without_duplicates)

    def line(self) -> int:
        """The line that is being read."""
        return self._text.count("\n", 0, self._at) + 1

    def read(self) -> Any:
        """What the file holds.

        Raises:
            JsonFault: No JSON, or an object with a key twice; `line` says where.
        """
        try:
            self._text = self._raw.decode()
        except UnicodeDecodeError as error:
            self._text = self._raw[: error.start].decode()
            self._at = error.start
            raise JsonFault(f"no UTF-8: {error}") from error
        try:
            whole = json.loads(self._text)
        except (ValueError, RecursionError) as error:  # also a number of thousands of digits
            self._at = getattr(error, "pos", 0)
            raise JsonFault(f"no JSON: {error}") from error
        return self._object() if isinstance(whole, dict) else whole

    # The syntax is known to be right from here on.
    def _object(self) -> dict[str, Any]:
        pairs: list[tuple[str, Any]] = []
        self._step_over("{")
        while not self._step_over("}"):
            self._step_over(",")
            name = self._value()
            self.lines.setdefault(name, self.line())
            self._step_over(":")
            pairs.append((name, self._array(name) if self._text[self._at] == "[" else self._value()))
        return without_duplicates(pairs)

    def _array(self, name: str) -> list[Any]:
        items: list[Any] = []
        self._step_over("[")
        while not self._step_over("]"):
            self._step_over(",")
            self.lines[f"{name}[{len(items)}]"] = self.line()
            items.append(self._value())
        return items

    def _value(self) -> Any:
        value, self._at = self._decoder.raw_decode(self._text, self._at)
        return value

    def _step_over(self, sign: str) -> bool:
        """Step over blanks, and over the sign and the blanks behind it if it stands there."""
        self._skip_blanks()
        if not self._text.startswith(sign, self._at):
            return False
        self._at += len(sign)
        self._skip_blanks()
        return True

    def _skip_blanks(self) -> None:
        while self._at < len(self._text) and self._text[self._at] in _BLANK:
            self._at += 1
