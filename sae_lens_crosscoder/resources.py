"""How much memory and disk there is."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil

_CGROUPS = (
    ("memory.max", "memory.current"),  # version 2
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),  # version 1
)
_CGROUP_ROOT = Path("/sys/fs/cgroup")


def available_memory(device: str = "cpu") -> int:
    """Bytes that can still be allocated on a device: of a GPU, or of this machine within the limit of its container."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    free = int(psutil.virtual_memory().available)
    limit = container_memory()
    return free if limit is None else min(free, limit)


def container_memory(root: Path = _CGROUP_ROOT, files: Sequence[tuple[str, str]] = _CGROUPS) -> int | None:
    """Bytes that the container leaves to its processes; None where it sets no limit."""
    for limit, usage in files:
        try:
            return max(0, int((root / limit).read_text()) - int((root / usage).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


def free_disk(folder: str | Path) -> int:
    """Bytes that are free where a folder is, or will be made."""
    path = Path(folder).resolve()
    return shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists())).free


def in_gb(n_bytes: float) -> str:
    """A number of bytes for a message, in units of 10^9 (or 10^6) bytes."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"
