from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
from chromium import EXECUTABLE, Chromium
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    # Triton reads it when it is imported: its kernels are interpreted, on tensors of the CPU.
    os.environ["TRITON_INTERPRET"] = "1"

# Tensors in tests are tiny: more threads only wait for each other.
torch.set_num_threads(1)

_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
settings.register_profile("usual", _PATIENT, max_examples=50, derandomize=True)
settings.register_profile("thorough", _PATIENT, max_examples=10_000, print_blob=True)
settings.load_profile("usual")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def usual_signals() -> None:
    """SAELens's runner leaves handlers of its own behind, and a shell's background jobs begin by ignoring SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    """A window of its own, closed afterwards."""
    if EXECUTABLE is None:
        pytest.skip("no Chromium is installed")
    opened = Chromium(tmp_path / "profile")
    yield opened
    opened.close()


@pytest.fixture
def float64() -> Iterator[None]:
    """Run in double precision: SAELens's store makes its tensors in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """Values of the wrong type reach the package's own checks, as they do outside the tests."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
