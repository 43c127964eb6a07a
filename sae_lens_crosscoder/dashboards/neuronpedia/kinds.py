"""The kinds of values in Neuronpedia's columns, and what is wrong with a value that is none of its kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sae_lens_crosscoder.dashboards.neuronpedia import names

_Fault = Callable[[Any], str | None]
_INT32 = 2**31 - 1


def kind_fault(value: Any, kind: str) -> str | None:
    """What is wrong with a value of a kind; None if nothing."""
    return _FAULTS[kind](value)


def are_plainly_good(items: Sequence[Any], kind: str) -> bool:
    """Whether all values are of a kind, told without a Python step for each of them; False leaves it open."""
    types = set(map(type, items))
    if kind == "Number":
        return types <= {int, float} and _are_finite(items)
    if kind == "Integer":
        return types <= {int} and (not items or -_INT32 <= min(items) <= max(items) <= _INT32)
    if kind == "Token":
        return types <= {str} and "" not in items and _text_fault("".join(items)) is None
    return False


def _number_fault(value: Any) -> str | None:
    if type(value) not in (int, float):
        return f"a number is needed, not {shown(value)}"
    if not _are_finite([value]):
        return f"{shown(value)} is no number that the database holds: one such value loses the whole file"
    return None


def _are_finite(values: Sequence[float]) -> bool:
    try:
        return all(map(math.isfinite, values))
    except OverflowError:  # an integer beyond all floats
        return False


def _integer_fault(value: Any) -> str | None:
    if type(value) is not int:
        return f"an integer is needed, not {shown(value)}: the database refuses the whole file"
    return None if abs(value) <= _INT32 else f"{value} does not fit into 32 bits"


def _text_fault(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"text is needed, not {shown(value)}"
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
        return f"{shown(value)} is no index of a latent: 0, 1, 2 and so on"
    return None


def _flag_fault(value: Any) -> str | None:
    return None if isinstance(value, bool) else f"true or false is needed, not {shown(value)}"


def _time_fault(value: Any) -> str | None:
    try:
        datetime.fromisoformat(value.replace("Z", "+00:00") if isinstance(value, str) else "")
    except ValueError:
        return f"{shown(value)} is no time in the form of ISO 8601"
    return None


def _visibility_fault(value: Any) -> str | None:
    allowed = ("PUBLIC", "UNLISTED", "PRIVATE")
    return None if value in allowed else f"{shown(value)} is none of {', '.join(allowed)}"


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


def shown(value: Any) -> str:
    """The value in a few signs of ASCII, for a message."""
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
