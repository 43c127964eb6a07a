from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.fields import checked_fields


@dataclass
class Example:
    size: int
    rate: float = 0.1
    kind: Literal["a", "b"] = "a"
    names: list[str] | None = None


def check(**values: object) -> dict[str, object]:
    return checked_fields(Example, values, "Example", ConfigError)


def test_numbers_that_yaml_reads_as_strings_become_numbers() -> None:
    assert check(size="3", rate="1e-4") == {"size": 3, "rate": 1e-4}
    assert check(size=4096.0) == {"size": 4096}


def test_an_unknown_field_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"Example has no field 'ratte'. Did you mean 'rate'\?"):
        check(size=1, ratte=2)


def test_a_missing_required_field_is_named() -> None:
    with pytest.raises(ConfigError, match="Example lacks size"):
        check(rate=1.0)


@pytest.mark.parametrize(("name", "value"), [("size", "many"), ("size", 1.5), ("kind", "c"), ("names", "x")])
def test_a_value_of_another_type_is_named_with_its_field(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"Example: {name} = .* is not valid"):
        check(**{"size": 1, name: value})


def test_fields_that_are_checked_elsewhere_pass_as_they_are() -> None:
    assert checked_fields(Example, {"size": "x"}, "Example", ConfigError, passed_over=("size",)) == {"size": "x"}
