"""Processes of `torchrun` for tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[2]


def torchrun(n_processes: int, *arguments: str | Path, max_restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a script in several processes of this machine, as `torchrun --standalone` does, and wait for its end."""
    folders = [TESTS.parent, TESTS, TESTS / "training", TESTS / "training" / "parallel"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}"]
    command.append(f"--max-restarts={max_restarts}")
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
