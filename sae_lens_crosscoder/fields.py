"""Mappings from configuration files, metadata and the command line, and their check against a dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from sae_lens_crosscoder.errors import ConfigError, CrosscoderError, NotFoundError, first_line

_MOST_LISTED = 30
"""Fields that a message names one by one."""


def checked_fields(
    cls: type[Any],
    values: Mapping[str, Any],
    what: str,
    error: type[CrosscoderError],
    passed_over: Collection[str] = (),
) -> dict[str, Any]:
    """The values by field, each of the type that the dataclass declares.

    Numbers and booleans may come as strings ("1e-4", which YAML reads as one), and whole floats as integers.

    Args:
        cls: The dataclass.
        values: What was given.
        what: Name of the thing in messages, such as "Source" or "sae".
        error: Error to raise.
        passed_over: Fields that are returned as they are, because they are checked elsewhere.

    Raises:
        CrosscoderError: No mapping at all, a field that the dataclass does not have (the message suggests the
            nearest), a required field that is missing, or a value of another type; raised as `error`.
    """
    if not isinstance(values, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise error(f"{what} must be a mapping of its fields, not {values!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(str(name), list(fields), n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(fields)}."
            if not near and len(fields) > _MOST_LISTED:
                hint = "`sae-lens-crosscoder fields` lists those that there are."
            raise error(f"{what} has no field {name!r}. {hint}")
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise error(f"{what} lacks {', '.join(missing)}.")
    hints = typing.get_type_hints(cls)
    return {
        name: value if name in passed_over else _typed(value, hints[name], f"{what}: {name}", error)
        for name, value in values.items()
    }


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the changes, merging mappings such as `sae` and `logger` field by field."""
    result = dict(base)
    for name, value in changes.items():
        old = result.get(name)
        result[name] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _typed(value: Any, annotation: Any, what: str, error: type[CrosscoderError]) -> Any:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # a dataclass that brings its own checks
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as problem:
        reasons = "; ".join(dict.fromkeys(detail["msg"] for detail in problem.errors()))
        raise error(f"{what} = {value!r} is not valid: {reasons}.") from None


def read_config_file(path: str | Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML file.

    Raises:
        NotFoundError: There is no such file.
        ConfigError: It cannot be parsed or is no mapping.
    """
    file = Path(path)
    if not file.is_file():
        raise NotFoundError(f"There is no configuration file at {file}.")
    try:
        values = json.loads(file.read_text()) if file.suffix == ".json" else yaml.safe_load(file.read_text())
    # YAML's own types (dates, integers with a tag) fail by whatever their conversion raises.
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds no mapping of fields but {type(values).__name__}.")
    return cast("dict[str, Any]", values)
