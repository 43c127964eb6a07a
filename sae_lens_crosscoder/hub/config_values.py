"""Values from a checkpoint's configuration, of the type that is needed, or an error that says what is there."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from sae_lens_crosscoder.errors import CheckpointError


@dataclass(frozen=True)
class ConfigValues:
    """The mapping of one configuration file."""

    file: str
    """Where it was read from, for messages."""

    values: Mapping[str, Any]

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number that is not below `least`.

        Raises:
            CheckpointError: It is missing (and there is no default) or something else.
        """
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self._wrong(key, value, f"a whole number from {least} on")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number.

        Raises:
            CheckpointError: It is missing (and there is no default) or something else.
        """
        value = self._value(key, default)
        try:
            number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
        except OverflowError:  # whole numbers in files have any number of digits
            number = math.inf
        if not math.isfinite(number):
            raise self._wrong(key, value, "a finite number")
        return number

    def text(self, key: str, default: str | None = None) -> str:
        """A text that is not empty.

        Raises:
            CheckpointError: It is missing (and there is no default) or something else.
        """
        value = self._value(key, default)
        if not isinstance(value, str) or not value:
            raise self._wrong(key, value, "a text")
        return value

    def items(self, key: str) -> list[Any]:
        """A list.

        Raises:
            CheckpointError: It is missing or something else.
        """
        value = self._value(key, None)
        if not isinstance(value, list):
            raise self._wrong(key, value, "a list")
        return cast("list[Any]", value)

    def below(self, key: str) -> ConfigValues:
        """The mapping that stands under a key; an empty one if there is none.

        Raises:
            CheckpointError: Something else stands there.
        """
        value = self.values.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self._wrong(key, value, "a mapping")
        return ConfigValues(f"{self.file}: {key}", cast("Mapping[str, Any]", value or {}))

    def over(self, other: ConfigValues) -> ConfigValues:
        """These values, and those of another file where this one has none."""
        own = {key: value for key, value in self.values.items() if value is not None}
        return ConfigValues(self.file, {**other.values, **own})

    def check_size(self, key: str, size: int) -> None:
        """Raises:
        CheckpointError: A number is given and differs from the size of the tensors.
        """
        if key in self and self.integer(key) != size:
            raise CheckpointError(
                f"{self.file} says {key}={_shown(self.values[key])}, but the tensors have {size}: the files do not "
                "belong together, or one of them is damaged. Download both again."
            )

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None and default is None:
            raise CheckpointError(f"{self.file} lacks {key!r}, without which the weights cannot be read.")
        return default if value is None else value

    def _wrong(self, key: str, value: Any, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: {key} = {_shown(value)} is not {wanted}.")


def _shown(value: Any) -> str:
    """The beginning of the value, without writing all of it out: a few lines of YAML can stand for gigabytes."""
    try:
        return reprlib.repr(value)[:100]
    except ValueError:  # Python writes out no whole number of more than 4,300 digits
        return f"a {type(value).__name__} that is too long to show"
