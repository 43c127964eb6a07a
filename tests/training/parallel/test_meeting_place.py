from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch.distributed as dist

from sae_lens_crosscoder.training.parallel import meeting_place

PROCESS = """
import runpy, sys, time
from datetime import timedelta
meeting_place = runpy.run_path(sys.argv[4])["meeting_place"]  # without the package around it, which takes seconds
time.sleep(float(sys.argv[1]))
place = meeting_place(timedelta(seconds=float(sys.argv[2])))
store, rank, n = place["store"], place["rank"], place["world_size"]
store.set(f"address/{rank}", sys.argv[3])
print(*(store.get(f"address/{other}").decode() for other in range(n)))
"""


@pytest.fixture
def lent() -> dist.TCPStore:
    """The store of `torchrun`, which outlives its processes."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def started(
    lent: dist.TCPStore, rank: int, n: int, address: str, wait: float, patience: float = 100
) -> subprocess.Popen[str]:
    lends = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(lent.port)}
    environment = {**os.environ, **lends, "RANK": str(rank), "WORLD_SIZE": str(n)}
    command = [sys.executable, "-c", PROCESS, str(wait), str(patience), address, meeting_place.__file__]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_every_start_sees_its_own_addresses_only_whoever_comes_first(lent: dist.TCPStore) -> None:
    for start, (waits, n) in enumerate([((0, 0, 0), 3), ((0, 1, 2), 3), ((2, 0, 1), 3), ((0, 1), 2)]):
        names = [f"{start}-{rank}" for rank in range(n)]
        processes = [started(lent, rank, n, names[rank], waits[rank]) for rank in range(n)]
        for process in processes:
            said, complaint = process.communicate(timeout=200)
            assert said.split() == names, complaint


@pytest.mark.slow
def test_a_process_that_does_not_come_is_named(lent: dist.TCPStore) -> None:
    lent.set("question/1", "one of an earlier start")
    _, complaint = started(lent, 0, 2, "here", 0, patience=1).communicate(timeout=200)
    assert "RuntimeError: Process 1 of 2 did not come within 0:00:01." in complaint


def test_without_a_lent_store_the_usual_place_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert meeting_place.meeting_place(timedelta(seconds=1)) == {}
