"""What must hold between the columns of one row, beyond their types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sae_lens_crosscoder.dashboards.neuronpedia.problems import Report
from sae_lens_crosscoder.dashboards.neuronpedia.schema import ACTIVATION, NEURON, SOURCE, Table

_Rule = Callable[[Mapping[str, Any], Report], None]


def check_rules(row: Mapping[str, Any], table: Table, report: Report) -> None:
    """Report what contradicts itself in a row whose columns have the right types."""
    rule = _RULES.get(table.name)
    if rule is not None:
        rule(row, report)


def _check_activation(row: Mapping[str, Any], report: Report) -> None:
    values = row["values"]
    if row["maxValue"] != max(values):
        report("maxValue", f"{row['maxValue']} is not the largest of the values, {max(values)}")
    if row["minValue"] != min(values):
        report("minValue", f"{row['minValue']} is not the smallest of the values, {min(values)}")
    position = row["maxValueTokenIndex"]
    if position >= len(values) or values[position] != max(values):
        report("maxValueTokenIndex", f"the largest value does not stand at {position}")
    qualifying = row.get("qualifyingTokenIndex")
    if qualifying is not None and qualifying >= len(values):
        report("qualifyingTokenIndex", f"{qualifying} is behind the last of {len(values)} tokens")


def _check_neuron(row: Mapping[str, Any], report: Report) -> None:
    has_vector, vector = row.get("hasVector", False), row.get("vector", [])
    if has_vector != bool(vector):
        report("hasVector", f"{str(has_vector).lower()} beside a vector of {len(vector)} numbers")
    if vector and row.get("hookName") is None:
        report("hookName", "a vector without the hook that it is added at: it cannot steer")
    if row.get("sourceSetName") is None:
        report("sourceSetName", "without its source set, searches and lists pass over the latent")


def _check_source(row: Mapping[str, Any], report: Report) -> None:
    _, _, rest = row["id"].partition("-")
    if rest.partition("__")[0] != row["setName"]:
        report("setName", f"the id {row['id']!r} is one of another source set than {row['setName']!r}")


_RULES: dict[str, _Rule] = {ACTIVATION.name: _check_activation, NEURON.name: _check_neuron, SOURCE.name: _check_source}
