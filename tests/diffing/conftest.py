"""A pair of sources as a trained crosscoder has it, made without a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from sae_lens_crosscoder.diffing import PairGeometry


def _make_geometry(labels: tuple[str, str] = ("base", "finetuned"), widths: tuple[int, int] = (16, 16)) -> PairGeometry:
    """300 shared latents, 20 of each source, 50 dead ones and one without any norm."""
    # Not at the top: jaxtyping's check has to be in place before the package is imported.
    from sae_lens_crosscoder.diffing import PairGeometry

    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(371, widths[0], generator=generator)
    other = torch.randn(371, widths[1], generator=generator)
    if widths[0] == widths[1]:
        other = direction + 0.4 * other
    ratio = torch.cat(
        [
            0.5 + 0.03 * torch.randn(300, generator=generator),
            torch.rand(20, generator=generator) * 0.08,
            1 - torch.rand(20, generator=generator) * 0.08,
            0.25 + torch.rand(30, generator=generator) * 0.5,
            torch.tensor([0.5]),
        ]
    )[:, None]
    unit, other_unit = (part / part.norm(dim=1, keepdim=True) for part in (direction, other))
    decoder = torch.cat([unit * (1 - ratio), other_unit * ratio], dim=1)
    decoder[-1] = 0
    dead = torch.zeros(371, dtype=torch.bool)
    dead[250:300] = True
    return PairGeometry.from_decoder(decoder, widths, labels, dead=dead)


@pytest.fixture
def make_geometry() -> Callable[..., PairGeometry]:
    return _make_geometry


@pytest.fixture
def geometry() -> PairGeometry:
    return _make_geometry()
