"""Without sae-dashboard everything else works, and what needs it says how to install it."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sae_dashboard":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "ignore", "-c", BLOCKED + code], capture_output=True, text=True)


def test_the_package_can_be_imported_and_names_the_install_command() -> None:
    code = """
import sae_lens_crosscoder.dashboards as dashboards
assert dashboards.DashboardConfig().n_logits == 10
for name in ("write_dashboards", "write_batches"):
    try:
        getattr(dashboards, name)
    except ImportError as error:
        assert 'pip install "sae-lens-crosscoder[dashboard]"' in str(error), error
    else:
        raise AssertionError(name)
"""
    assert run(code).returncode == 0, run(code).stderr


def test_the_command_names_it_too() -> None:
    code = """
from sae_lens_crosscoder.cli import main
sys.exit(main(["dashboard", "nowhere", "--latents", "1"]))
"""
    done = run(code)
    assert done.returncode == 2
    assert 'pip install "sae-lens-crosscoder[dashboard]"' in done.stderr
