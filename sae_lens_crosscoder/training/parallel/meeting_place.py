"""Where processes that `torchrun` started, or started anew, find each other's addresses."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

_LOOK_SECONDS = 0.02


def meeting_place(timeout: timedelta) -> dict[str, Any]:
    """What `torch.distributed.init_process_group` is told besides, so that a start does not see addresses of another.

    `torchrun` lends its processes a store that outlives them. When it starts all anew, the addresses of those that have
    ended are still in it, and a process that reads one of them connects to nobody
    (https://github.com/pytorch/pytorch/issues/135712). Its count of restarts does not tell starts apart: every machine
    has one of its own. So the first process draws the name of a part of the store that this start has to itself.

    Raises:
        RuntimeError: Another process did not come in time.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

    rank, n_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    lent = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout)
    part = _told_to_all(lent, n_ranks, timeout) if rank == 0 else _asked_for(lent, rank)
    return {"store": PrefixStore(part, lent), "rank": rank, "world_size": n_ranks}


def _asked_for(lent: Store, rank: int) -> str:
    """The name of the part. The answer is to this very question, so that it cannot be one to an earlier start."""
    question = uuid4().hex
    lent.set(f"question/{rank}", question)
    part = lent.get(f"answer/{question}").decode()
    lent.set(f"{part}/told/{rank}", "")
    return part


def _told_to_all(lent: Store, n_ranks: int, timeout: timedelta) -> str:
    """The name of the part, when every other process has it; a question of an earlier start is answered in vain."""
    part, missing, end = uuid4().hex, set(range(1, n_ranks)), time.monotonic() + timeout.total_seconds()
    while missing:
        for rank in missing:
            if lent.check([f"question/{rank}"]):
                lent.set(f"answer/{lent.get(f'question/{rank}').decode()}", part)
        missing = {rank for rank in missing if not lent.check([f"{part}/told/{rank}"])}
        if missing and time.monotonic() > end:
            raise RuntimeError(f"Process {min(missing)} of {n_ranks} did not come within {timeout}.")
        time.sleep(_LOOK_SECONDS if missing else 0)
    return part
