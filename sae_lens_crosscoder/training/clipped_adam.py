"""Adam's step with gradients clipped to a norm, in one pass over weights, gradients and moments."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Adam

_FUSED_DEVICES = ("cpu", "cuda")


def make_fused(optimizer: Adam) -> None:
    """Let Adam update each weight in one pass where torch can, also after it was loaded from a checkpoint.

    The fused step reads weights, gradients and moments in the order of memory, so that all three are stored alike:
    moments from a file may not be.
    """
    for group in optimizer.param_groups:
        weights: list[Tensor] = group["params"]
        group["fused"] = all(w.device.type in _FUSED_DEVICES and w.is_floating_point() for w in weights)
        group["foreach"] = None
        for weight in weights:
            state = cast("dict[str, Tensor]", optimizer.state.get(weight, {}))
            for name, moment in state.items():
                if moment.shape == weight.shape and moment.stride() != weight.stride():
                    state[name] = torch.empty_like(weight).copy_(moment)


def clipped_step(optimizer: Adam, max_norm: float) -> None:
    """Divide all gradients by max(1, norm / max_norm), as `clip_grad_norm_` does, and make Adam's step.

    Fused Adam divides while it reads a gradient. It takes the divisor in float32, which is too coarse for gradients in
    float64: these are clipped beforehand.
    """
    weights: list[Tensor] = [weight for group in optimizer.param_groups for weight in group["params"]]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    is_fused = all(group["fused"] for group in optimizer.param_groups)
    if not is_fused or any(gradient.dtype == torch.float64 for gradient in gradients):
        torch.nn.utils.clip_grad_norm_(weights, max_norm)
        optimizer.step()
        return
    norm = torch.nn.utils.get_total_norm(gradients)
    scaled = cast(Any, optimizer)
    scaled.grad_scale = ((norm + 1e-6) / max_norm).clamp(min=1).float()
    with _in_memory_order(optimizer, weights):
        optimizer.step()
    scaled.grad_scale = None


@contextmanager
def _in_memory_order(optimizer: Adam, weights: list[Tensor]) -> Generator[None]:
    """Show Adam the transpose of each matrix that is stored by columns: it would copy the matrix and its moments."""
    by_columns = [w for w in weights if w.ndim == 2 and not w.is_contiguous() and w.T.is_contiguous()]
    for weight in by_columns:
        _transpose(weight, optimizer)
    try:
        yield
    finally:
        for weight in by_columns:
            _transpose(weight, optimizer)


def _transpose(weight: Tensor, optimizer: Adam) -> None:
    gradient, weight.grad = weight.grad, None
    weight.data = weight.data.T
    weight.grad = None if gradient is None else gradient.T
    state = cast("dict[str, Tensor]", optimizer.state[weight])
    state.update({name: moment.T for name, moment in state.items() if moment.ndim == 2})
