"""One row against its table: keys, types, ranges, equal lengths. Knows nothing of any particular table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from sae_lens_crosscoder.dashboards.neuronpedia.kinds import are_plainly_good, kind_fault, shown
from sae_lens_crosscoder.dashboards.neuronpedia.problems import Report
from sae_lens_crosscoder.dashboards.neuronpedia.schema import Column, Table


def check_row(row: Any, table: Table, report: Report, path: str = "") -> bool:
    """Report whatever in a row does not fit its table; True if nothing.

    Args:
        row: What was parsed from JSON, with NaN and infinities as floats.
        table: What it should be.
        report: Takes the path inside the row, and a message.
        path: Where the row itself stands.
    """
    noted = _Counted(report)
    if not isinstance(row, dict):
        noted(path, f"a {table.name} must be an object, not {shown(row)}")
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
    return noted.n_faults == 0


class _Counted:
    """A report that counts."""

    def __init__(self, report: Report) -> None:
        self.n_faults = 0
        self._report = report

    def __call__(self, path: str, message: str) -> None:
        self.n_faults += 1
        self._report(path, message)


def _check_value(value: Any, column: Column, table: Table, report: Report, path: str) -> None:
    if value is None:
        if not column.is_nullable:
            report(path, "null stands in a column that takes none")
    elif not column.is_array:
        _check_item(value, column, table, report, path)
    elif not isinstance(value, list):
        report(path, f"an array is needed, not {shown(value)}")
    else:
        items = cast("list[Any]", value)
        if not column.low <= len(items) <= column.high:
            report(path, f"{len(items)} entries, where {_range(column)} are allowed")
        if not are_plainly_good(items, column.kind):
            for position, item in enumerate(items):
                _check_item(item, column, table, report, f"{path}[{position}]")


def _check_item(value: Any, column: Column, table: Table, report: Report, path: str) -> None:
    nested = table.nested.get(column.kind)
    if nested is not None:
        check_row(value, nested, report, path)
        return
    fault = "null in an array is taken and breaks the page" if value is None else kind_fault(value, column.kind)
    if fault is None and not column.is_array:
        size = len(value) if isinstance(value, str) else value
        if isinstance(size, (int, float)) and not column.low <= size <= column.high:
            fault = f"{shown(value)} is outside {_range(column)}"
    if fault is not None:
        report(path, fault)


def _check_lengths(row: Mapping[str, Any], table: Table, report: Report, prefix: str) -> None:
    sizes = {name: len(cast("list[Any]", value)) for name, value in row.items() if isinstance(value, list)}
    for group in table.parallel:
        lengths = {name: sizes[name] for name in group if name in sizes}
        if len(set(lengths.values())) > 1:
            described = ", ".join(f"{name} {size}" for name, size in lengths.items())
            report(f"{prefix}{group[0]}", f"arrays that run side by side differ in length ({described})")
    for name, other in table.parallel_or_empty:
        if sizes.get(name) and other in sizes and sizes[name] != sizes[other]:
            report(f"{prefix}{name}", f"{sizes[name]} entries beside {sizes[other]} in {other}")


def _range(column: Column) -> str:
    low = "" if column.low == -math.inf else f"{column.low:g}"
    high = "" if column.high == math.inf else f"{column.high:.0f}"
    return f"{low}..{high}"
