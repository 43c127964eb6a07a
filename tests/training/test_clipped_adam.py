from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch.optim import Adam

from sae_lens_crosscoder.training.clipped_adam import clipped_step, make_fused


def weights(dtype: torch.dtype, seed: int = 0) -> list[torch.nn.Parameter]:
    """A matrix stored by rows, one stored by columns, and a vector."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, dtype=dtype, generator=generator) for shape in ((6, 4), (5, 7), (3,))]
    return [torch.nn.Parameter(w) for w in (drawn[0], drawn[1].T, drawn[2])]


def give_gradients(parameters: list[torch.nn.Parameter], scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        drawn = scale * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
        parameter.grad = torch.empty_like(parameter).copy_(drawn)


@pytest.mark.parametrize("scale", [1e-3, 10.0], ids=["short gradients", "long gradients"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_steps_are_those_of_plain_adam_after_clipping(scale: float, dtype: torch.dtype, tolerance: float) -> None:
    here, there = weights(dtype), weights(dtype)
    fused, plain = Adam(here, lr=0.1), Adam(there, lr=0.1, foreach=False)
    make_fused(fused)
    for step in range(5):
        for parameters in (here, there):
            give_gradients(parameters, scale * (step + 1), step)
        clipped_step(fused, 1.0)
        torch.nn.utils.clip_grad_norm_(there, 1.0)
        plain.step()
    for mine, theirs in zip(here, there, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
        assert mine.stride() == theirs.stride()


def test_a_step_leaves_weights_gradients_and_moments_as_they_were_stored() -> None:
    parameters = weights(torch.float32)
    optimizer = Adam(parameters, lr=0.1)
    make_fused(optimizer)
    give_gradients(parameters, 1.0, 0)
    strides = [p.stride() for p in parameters]
    pointers = [p.data_ptr() for p in parameters]
    clipped_step(optimizer, 1.0)
    for parameter, stride, pointer in zip(parameters, strides, pointers, strict=True):
        moments = optimizer.state[parameter]
        assert parameter.grad is not None
        stored = [parameter, parameter.grad, moments["exp_avg"], moments["exp_avg_sq"]]
        assert [tensor.stride() for tensor in stored] == [stride] * 4
        assert parameter.data_ptr() == pointer


def saved(optimizer: Adam, by_rows: bool) -> dict[str, Any]:
    state = copy.deepcopy(optimizer.state_dict())
    if by_rows:  # as a checkpoint has them whose weights were stored by rows
        for group in state["param_groups"]:
            group["fused"] = None
        for moments in state["state"].values():
            moments.update({name: moment.contiguous() for name, moment in moments.items()})
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize("by_rows", [False, True])
def test_a_loaded_optimizer_goes_on_as_if_it_had_not_been_saved(by_rows: bool) -> None:
    here, there = weights(torch.float32), weights(torch.float32)
    unbroken, resumed = Adam(here, lr=0.1), Adam(there, lr=0.1)
    make_fused(unbroken)
    give_gradients(here, 1.0, 0)
    clipped_step(unbroken, 1.0)
    for mine, theirs in zip(here, there, strict=True):
        theirs.data.copy_(mine.data)
    resumed.load_state_dict(saved(unbroken, by_rows))
    make_fused(resumed)
    for parameters, optimizer in ((here, unbroken), (there, resumed)):
        give_gradients(parameters, 1.0, 1)
        clipped_step(optimizer, 1.0)
    for mine, theirs in zip(here, there, strict=True):
        assert torch.equal(mine, theirs)
