from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def double_precision(float64: None) -> None:
    """All runs here are in float64."""


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of the run that nothing happens to."""
    # Here, because what conftest.py imports is imported before jaxtyping can check its signatures.
    from faults.damage import result, train

    torch.set_default_dtype(torch.float64)
    folder: Path = tmp_path_factory.mktemp("unbroken")
    train(folder)
    return result(folder)
