from __future__ import annotations

import math

import pytest
import torch

from sae_lens_crosscoder.errors import CheckpointError
from sae_lens_crosscoder.hub.tensor_table import TensorTable


def table(**tensors: torch.Tensor) -> TensorTable:
    return TensorTable("w.pt", {"W": torch.ones(2, 3), **tensors}, "W")


def test_sizes_that_differ_between_tensors_are_refused():
    tensors = table(b=torch.ones(3), c=torch.ones(2))
    tensors.take("W", "rows", "columns")
    tensors.take("b", "columns")
    with pytest.raises(CheckpointError, match=r"c has shape \(2,\), but should be \(columns\) with columns = \(3,\)"):
        tensors.take("c", "columns")
    assert (tensors.size("rows"), tensors.size("columns")) == (2, 3)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 1), (0, 3), ()])
def test_another_number_of_dimensions_or_an_empty_one_is_refused(shape: tuple[int, ...]):
    with pytest.raises(CheckpointError, match="should be"):
        table(W=torch.ones(shape)).take("W", "rows", "columns")


@pytest.mark.parametrize("n_dimensions", [0, 1, 2, 3])
def test_a_star_stands_for_any_number_of_dimensions_that_then_agree(n_dimensions: int):
    sources = (2, 3, 4)[:n_dimensions]
    tensors = table(W=torch.ones(*sources, 5), b=torch.ones(7, *sources))
    tensors.take("W", "*sources", "d")
    tensors.take("b", "latents", "*sources")
    assert tensors.sizes["*sources"] == sources
    assert tensors.size("*sources") == math.prod(sources)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused_and_counted(value: float):
    weights = torch.ones(2, 3)
    weights[1, 1:] = value
    with pytest.raises(CheckpointError, match="2 of 6 values of W are NaN or infinite"):
        table(W=weights).take("W", "rows", "columns")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_not_floating_are_refused(dtype: torch.dtype):
    with pytest.raises(CheckpointError, match="weights are floating"):
        table(W=torch.ones(2, 3, dtype=dtype)).take("W", "rows", "columns")


def test_tensors_that_nobody_takes_are_refused():
    tensors = table(W_skip=torch.ones(1), k=torch.ones(1))
    tensors.take("W", "rows", "columns")
    tensors.leave_out(["k", "absent"])
    with pytest.raises(CheckpointError, match=r"does not have \(W_skip\)"):
        tensors.check_all_taken()


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "crosscoder.", "a.b."])
def test_what_stands_in_front_of_names_is_taken_off(prefix: str):
    tensors = TensorTable("w.pt", {f"{prefix}W": torch.ones(2), f"{prefix}b": torch.ones(3), "k": torch.ones(1)}, "W")
    assert "W" in tensors
    assert "b" in tensors
    assert "k" in tensors


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.W", "b.W"], "2 tensors W"),
        (["b"], "no tensor W"),
        (["XW"], "no tensor W"),
        (["W", "_orig_mod.W"], "twice"),
        (["a.W", "b", "a.b"], "twice"),
    ],
)
def test_names_that_are_not_clear_are_refused(names: list[str], message: str):
    with pytest.raises(CheckpointError, match=message):
        TensorTable("w.pt", {name: torch.ones(1) for name in names}, "W")


def test_a_missing_tensor_is_named_with_what_is_there():
    with pytest.raises(CheckpointError, match=r"lacks the tensor b\. It has W"):
        table().take("b", "columns")
