"""One row against its table: keys, types, ranges, equal lengths. Knows nothing of any particular table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from sae_lens_crosscoder.dashboards.neuronpedia import names
from sae_lens_crosscoder.dashboards.neuronpedia.problems import Report
from sae_lens_crosscoder.dashboards.neuronpedia.schema import INT32, Column, Table

_Fault = Callable[[Any], str | None]


def check_row(row: Any, table: Table, report: Report, path: str = "") -> bool:
    """Report whatever in a row does not fit its table; True if nothing.

    Args:
        row: What was parsed from JSON, with NaN and infinities as floats.
        table: What it should be.
        report: Takes the path inside the row, and a message.
        path: Where the row itself stands.
    """
    n_faults = 0

    def noted(place: str, message: str) -> None:
        nonlocal n_faults
        n_faults += 1
        report(place, message)

    if not isinstance(row, dict):
        noted(path, f"a {table.name} must be an object, not {_shown(row)}")
        return False
    row = cast("dict[str, Any]", row)
    prefix = f"{path}." if path else ""
    for name in table.required:
        if name not in row:
            noted(f"{prefix}{name}", f"every {table.name} needs this key, which has no default")
    for name, value in row.items():
        column = table.columns.get(name)
        if column is None:
            noted(f"{prefix}{name}", f"{table.name} has no such column: Neuronpedia drops it silently")
        else:
            _check_value(value, column, table, noted, f"{prefix}{name}")
    _check_lengths(row, table, noted, prefix)
    return n_faults == 0


def _check_value(value: Any, column: Column, table: Table, report: Report, path: str) -> None:
    if value is None:
        if not column.is_nullable:
            report(path, "null stands in a column that takes none")
    elif not column.is_array:
        _check_item(value, column, table, report, path)
    elif not isinstance(value, list):
        report(path, f"an array is needed, not {_shown(value)}")
    else:
        items = cast("list[Any]", value)
        if not column.low <= len(items) <= column.high:
            report(path, f"{len(items)} entries, where {_range(column)} are allowed")
        if not _is_plain(items, column.kind):
            for position, item in enumerate(items):
                _check_item(item, column, table, report, f"{path}[{position}]")


def _check_item(value: Any, column: Column, table: Table, report: Report, path: str) -> None:
    nested = table.nested.get(column.kind)
    if nested is not None:
        check_row(value, nested, report, path)
        return
    fault = "null in an array is taken and breaks the page" if value is None else _FAULTS[column.kind](value)
    if fault is None and not column.is_array:
        size = len(value) if isinstance(value, str) else value
        if isinstance(size, (int, float)) and not column.low <= size <= column.high:
            fault = f"{_shown(value)} is outside {_range(column)}"
    if fault is not None:
        report(path, fault)


def _check_lengths(row: Mapping[str, Any], table: Table, report: Report, prefix: str) -> None:
    def length(name: str) -> int | None:
        value = row.get(name)
        return len(cast("list[Any]", value)) if isinstance(value, list) else None

    for group in table.parallel:
        lengths = {name: size for name in group if (size := length(name)) is not None}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{name} {size}" for name, size in lengths.items())
            report(f"{prefix}{group[0]}", f"arrays that run side by side differ in length ({shown})")
    for name, other in table.parallel_or_empty:
        if length(name) and length(other) is not None and length(name) != length(other):
            report(f"{prefix}{name}", f"{length(name)} entries beside {length(other)} in {other}")


def _is_plain(items: Sequence[Any], kind: str) -> bool:
    """Whether an array holds only good values, told without a Python step for each of them."""
    types = set(map(type, items))
    if kind == "Number":
        return types <= {int, float} and all(map(math.isfinite, items))
    if kind == "Integer":
        return types <= {int} and (not items or -INT32 <= min(items) <= max(items) <= INT32)
    if kind == "Token":
        return types <= {str} and "" not in items and _text_fault("".join(items)) is None
    return False


def _number_fault(value: Any) -> str | None:
    if type(value) not in (int, float):
        return f"a number is needed, not {_shown(value)}"
    if not math.isfinite(value):
        return f"{value} is no JSON number: one such value loses the whole file"
    return None


def _integer_fault(value: Any) -> str | None:
    if type(value) is not int:
        return f"an integer is needed, not {_shown(value)}: the database refuses the whole file"
    return None if abs(value) <= INT32 else f"{value} does not fit into 32 bits"


def _text_fault(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"text is needed, not {_shown(value)}"
    if "\0" in value:
        return "the character NUL, which Neuronpedia turns into a blank"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        surrogate = value[error.start]
        return f"half a character (lone surrogate U+{ord(surrogate):04X}): the database refuses the whole file"
    return None


def _token_fault(value: Any) -> str | None:
    return "an empty token, which Neuronpedia refuses" if value == "" else _text_fault(value)


def _name_fault(value: Any) -> str | None:
    fault = _text_fault(value)
    return "an empty name" if fault is None and not value.strip() else fault


def _index_fault(value: Any) -> str | None:
    text = str(value) if type(value) is int else value
    if not isinstance(text, str) or not text.isascii() or not text.isdigit() or text != str(int(text)):
        return f"{_shown(value)} is no index of a latent: 0, 1, 2 and so on"
    return None


def _flag_fault(value: Any) -> str | None:
    return None if isinstance(value, bool) else f"true or false is needed, not {_shown(value)}"


def _time_fault(value: Any) -> str | None:
    try:
        datetime.fromisoformat(value.replace("Z", "+00:00") if isinstance(value, str) else "")
    except ValueError:
        return f"{_shown(value)} is no time in the form of ISO 8601"
    return None


def _visibility_fault(value: Any) -> str | None:
    allowed = ("PUBLIC", "UNLISTED", "PRIVATE")
    return None if value in allowed else f"{_shown(value)} is none of {', '.join(allowed)}"


def _named(rule: Callable[[str], str | None]) -> _Fault:
    return lambda value: _name_fault(value) or rule(value)


_FAULTS: dict[str, _Fault] = {
    "Number": _number_fault,
    "Integer": _integer_fault,
    "Text": _text_fault,
    "Token": _token_fault,
    "Name": _name_fault,
    "Index": _index_fault,
    "Flag": _flag_fault,
    "Time": _time_fault,
    "Json": lambda value: None,
    "Visibility": _visibility_fault,
    "ModelId": _named(names.model_id_fault),
    "SetName": _named(names.set_name_fault),
    "SourceId": _named(names.source_id_fault),
    "UploadId": _named(names.upload_id_fault),
}


def _range(column: Column) -> str:
    low = "" if column.low == -math.inf else f"{column.low:g}"
    high = "" if column.high == math.inf else f"{column.high:.0f}"
    return f"{low}..{high}"


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
