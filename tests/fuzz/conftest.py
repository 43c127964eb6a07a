from __future__ import annotations

from typing import Any

import jaxtyping
import pytest


@pytest.fixture(scope="module", autouse=True)
def unchecked_annotations() -> Any:
    """The package's own checks must do, as they do outside the tests."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
