"""What the contenders of `step.py` have learned from the same tokens: unexplained variance, L0, dead latents."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from step_contenders import CONTENDERS, OURS, REFERENCE, SPARSIFY, Contender, Shape, batches, installed, n_active

from sae_lens_crosscoder.training.sparse import forward

SHAPE = Shape(batch=512, width=128, d_sae=2048, k=32)
DENSE = f"{OURS}, dense reference step"
NAMES = [REFERENCE, "SAELens TopK", SPARSIFY, OURS, f"{OURS}, bfloat16 encoder", "topk_crosscoder"]


@contextmanager
def dense_steps() -> Generator[None]:
    """Make every step with all codes."""
    limit, forward.MAX_ACTIVE_SHARE = forward.MAX_ACTIVE_SHARE, -1.0
    try:
        yield
    finally:
        forward.MAX_ACTIVE_SHARE = limit


def quality_rows(n_steps: int) -> list[dict[str, Any]]:
    """A row a contender: trained for `n_steps`, read on the last tenth of them."""
    data = batches(SHAPE, n_steps)
    rows = [_row(name, _seeded(name), data) for name in installed(NAMES)]
    with dense_steps():
        rows.append(_row(DENSE, _seeded(OURS), data))
    return rows


def _seeded(name: str) -> Contender:
    """A contender whose weights begin as in every other call."""
    torch.manual_seed(0)
    return CONTENDERS[name](SHAPE)


def _row(name: str, contender: Contender, data: list[torch.Tensor]) -> dict[str, Any]:
    n_read = len(data) // 10
    unexplained, total, n_all = 0.0, 0.0, 0.0
    fired = torch.zeros(SHAPE.d_sae)
    for i, x in enumerate(data):
        output = contender.step(x)  # its reconstruction is from before the step: no batch is read after it was learned
        if i < len(data) - n_read:
            continue
        unexplained += (output.sae_out.detach() - x).pow(2).sum().item()
        total += (x - x.mean(dim=0)).pow(2).sum().item()
        n_fired = n_active(output, SHAPE.d_sae)
        n_all += n_fired.sum().item() / len(x)
        fired += n_fired
    return {
        "name": name,
        "shape": str(SHAPE),
        "n_steps": len(data),
        "unexplained_variance": unexplained / total,
        "l0": n_all / n_read,
        "silent_latents": int((fired == 0).sum()),
    }
