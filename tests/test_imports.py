"""What an import costs: the package adds nothing heavy to what SAELens imports by itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

NEW_MODULES = """
import sys
import sae_lens
before = set(sys.modules)
import sae_lens_crosscoder
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def added() -> set[str]:
    """Packages that importing ours adds to those that SAELens imports."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NEW_MODULES], capture_output=True, text=True, check=True
    )
    return set(run.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_no_drawing_library_and_no_optional_package() -> None:
    late = {"matplotlib", "plotly", "sae_dashboard", "triton", "shtab", "narwhals", "fontTools", "mpl_toolkits"}
    assert late & added() == set()


@pytest.mark.parametrize("module", ["diffing", "model_diff", "hub", "training", "causal"])
def test_no_package_needs_a_drawing_library_before_it_draws(module: str) -> None:
    program = f"import sys, sae_lens; before = set(sys.modules); import sae_lens_crosscoder.{module}\n"
    program += "assert not {'matplotlib', 'plotly'} & (set(sys.modules) - before)"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
