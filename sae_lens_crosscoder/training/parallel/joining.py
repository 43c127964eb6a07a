"""Joining the other processes that `torchrun` started, and the device of this one."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.ranks import Ranks, with_others
from sae_lens_crosscoder.training.parallel.meeting_place import meeting_place


def join(device: str, timeout_seconds: int) -> Ranks:
    """All processes of the run: those of `torchrun`, or this one alone.

    On CUDA they talk by NCCL, elsewhere by Gloo. A process that waits longer than the timeout ends with an error;
    `torchrun` then ends the others, and starts all anew if it was told to (`--max-restarts`).

    Raises:
        ConfigError: More processes on this machine than it has GPUs.
        LostProcessError: Another process did not come in time.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        on_cuda = device.startswith("cuda")
        if on_cuda:
            torch.cuda.set_device(own_device(device))
        timeout = timedelta(seconds=timeout_seconds)
        with with_others():
            dist.init_process_group("nccl" if on_cuda else "gloo", timeout=timeout, **meeting_place(timeout))
    return Ranks()


def own_device(device: str) -> str:
    """The device of this process: "cuda" is the GPU with its number on this machine.

    Raises:
        ConfigError: There is no such GPU, or all processes would use one.
    """
    if not device.startswith("cuda") or "LOCAL_RANK" not in os.environ:
        return device
    n_processes, local_rank = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ["LOCAL_RANK"])
    if n_processes > 1 and device != "cuda":
        raise ConfigError(
            f"device={device!r} would put {n_processes} processes on one GPU. Use 'cuda': each process takes one of "
            "its own."
        )
    if n_processes > torch.cuda.device_count():
        raise ConfigError(
            f"torchrun started {n_processes} processes on a machine with {torch.cuda.device_count()} GPUs. Start one "
            "for each GPU (--nproc-per-node), or train on the CPU (device='cpu')."
        )
    return device if device != "cuda" else f"cuda:{local_rank}"


def place(cfg: Any, ranks: Ranks) -> None:
    """Set what differs between processes, the devices, and what all have from the first, the folder of checkpoints."""
    if not ranks.is_several:
        return
    for name in ("device", "llm_device", "act_store_device"):
        device = getattr(cfg, name)
        if device is not None and device != "with_model":
            setattr(cfg, name, own_device(device))
    cfg.sae.device = cfg.device
    # SAELens appends a unique id, which every process has drawn for itself.
    cfg.checkpoint_path = ranks.from_first(cfg.checkpoint_path)


def leave() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()
