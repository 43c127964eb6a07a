from __future__ import annotations

import math
from typing import Any

import pytest

from sae_lens_crosscoder.errors import CheckpointError
from sae_lens_crosscoder.hub.config_values import ConfigValues


def config(**values: Any) -> ConfigValues:
    return ConfigValues("c.json", values)


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None, [1]])
def test_what_is_no_positive_whole_number_is_refused(value: Any):
    with pytest.raises(CheckpointError, match=r"c\.json.*k"):
        config(k=value).integer("k")


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "3", None, {}])
def test_what_is_no_finite_number_is_refused(value: Any):
    with pytest.raises(CheckpointError, match=r"c\.json.*s"):
        config(s=value).number("s")


@pytest.mark.parametrize("value", ["", 3, None, ["a"]])
def test_what_is_no_text_is_refused(value: Any):
    with pytest.raises(CheckpointError, match=r"c\.json.*name"):
        config(name=value).text("name")


def test_values_of_the_right_type_and_defaults_are_given():
    values = config(k=3, s=0.5, name="a", list=[1], none=None)
    assert (values.integer("k"), values.number("s"), values.text("name"), values.items("list")) == (3, 0.5, "a", [1])
    assert (values.integer("none", 4), values.number("k"), values.text("none", "b")) == (4, 3.0, "b")
    assert "none" not in values


def test_an_own_value_goes_before_another_files_and_none_is_no_value():
    joined = config(a=1, b=None).over(config(a=2, b=3, c=4))
    assert [joined.integer(key) for key in "abc"] == [1, 3, 4]


def test_a_mapping_below_a_key_is_found_or_empty_and_anything_else_refused():
    values = config(trainer={"k": 3}, k=4)
    assert values.below("trainer").integer("k") == 3
    assert values.below("nothing").values == {}
    with pytest.raises(CheckpointError, match="a mapping"):
        values.below("k")
    with pytest.raises(CheckpointError, match="a list"):
        values.items("k")


def test_a_size_that_differs_from_the_tensors_is_refused():
    config(d=3).check_size("d", 3)
    config().check_size("d", 3)
    with pytest.raises(CheckpointError, match="d=3, but the tensors have 4"):
        config(d=3).check_size("d", 4)


def test_a_number_of_too_many_digits_is_refused() -> None:
    for digits in (10**400, 16**5000):
        with pytest.raises(CheckpointError, match="is not a finite number"):
            config(scale=digits).number("scale")
        with pytest.raises(CheckpointError, match="but the tensors have 6"):
            config(d_in=digits).check_size("d_in", 6)


def test_a_value_that_stands_for_more_than_fits_in_memory_is_refused_at_once() -> None:
    nested: object = "x"
    for _ in range(60):  # 2^60 letters, if it were written out
        nested = [nested, nested]
    with pytest.raises(CheckpointError, match=r"classname = \[.{,300} is not a text"):
        config(classname=nested).text("classname")


def test_a_whole_number_may_have_a_least_value() -> None:
    values = config(layer=0)
    assert values.integer("layer", least=0) == 0
    with pytest.raises(CheckpointError, match="from 1 on"):
        values.integer("layer")
