"""The memory and disk that a run takes at least, told before it starts and refused where they are not there."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sae_lens_crosscoder.activations.shuffle_buffer import n_pool_rows
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.resources import available_memory, free_disk, in_gb
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig

_COPIES = 4  # weights, their gradients and Adam's two moments


@dataclass(frozen=True)
class RunNeeds:
    """What a run takes beside its models and the working memory of a step, in bytes."""

    weights: int
    """The dictionary's weights."""

    buffer: int
    """The buffer of activations, with its room for passes that come early."""

    batch: int
    """One training batch."""

    n_weight_parts: int
    """Processes among which the weights are divided."""

    checkpoints: int
    """How many checkpoints are on disk at once, at most: those kept and the one being written."""

    @property
    def training(self) -> int:
        """Memory of one process: weights, gradients and Adam's moments, a batch, its reconstruction and residual."""
        return _COPIES * self.weights // self.n_weight_parts + 3 * self.batch

    @property
    def checkpoint(self) -> int:
        """Disk of one checkpoint: weights, Adam's moments, and the buffer, which makes resuming exact."""
        return 3 * self.weights + self.buffer

    @classmethod
    def of(cls, cfg: CrosscoderRunnerConfig[Any], n_processes: int = 1) -> RunNeeds:
        """The needs of a run by so many processes."""
        sae = cfg.sae
        assert cfg.train_batch_size_tokens is not None
        n_weights = 2 * sae.d_in * sae.d_sae + sae.d_in + sae.d_sae
        row = sae.d_in * _itemsize(cfg.buffer_dtype or cfg.dtype)
        kept = cfg.n_checkpoints if cfg.n_kept_checkpoints is None else cfg.n_kept_checkpoints + 1
        planned = min(cfg.n_checkpoints, kept)
        return cls(
            weights=n_weights * _itemsize(sae.dtype),
            buffer=_n_buffer_rows(cfg) * row,
            batch=cfg.train_batch_size_tokens * sae.d_in * _itemsize(sae.dtype),
            n_weight_parts=n_processes if cfg.dictionary_layout == "sharded" else 1,
            checkpoints=0 if cfg.checkpoint_path is None else planned + int(cfg.save_final_checkpoint),
        )


def _n_buffer_rows(cfg: CrosscoderRunnerConfig[Any]) -> int:
    assert cfg.train_batch_size_tokens is not None
    n_positions = cfg.buffer_tokens // max(1, cfg.n_batches_in_buffer)
    n_further = (1 + int(cfg.prefetch_llm_batches or 0)) * cfg.store_batch_size_prompts * n_positions
    return n_pool_rows(cfg.buffer_tokens, n_further, cfg.train_batch_size_tokens, cfg.activations_mixing_fraction)


def check_needs(cfg: CrosscoderRunnerConfig[Any], n_processes: int = 1) -> None:
    """Refuse a run that cannot fit, by so many processes that each have a device of their own.

    Raises:
        ConfigError: A device has less memory free than the dictionary and the buffer take, or a disk less room than
            the checkpoints and the result; the message holds the numbers and the fields that lower them.
    """
    needs = RunNeeds.of(cfg, n_processes)
    on_device: dict[str, int] = defaultdict(int)
    on_device[cfg.device] += needs.training
    on_device[cfg.act_store_device or cfg.device] += needs.buffer // n_processes
    for device, wanted in on_device.items():
        free = available_memory(device)
        if wanted > free:
            raise ConfigError(
                f"The run takes at least {in_gb(wanted)} of memory on {device}, where {in_gb(free)} are free: weights, "
                f"gradients and Adam's moments have {in_gb(_COPIES * needs.weights // needs.n_weight_parts)}, the "
                f"buffer has {in_gb(needs.buffer // n_processes)}, and the models come on top. Lower d_sae, "
                "n_batches_in_buffer or context_size, "
                "or set buffer_dtype='bfloat16'."
            )
    _check_disk(cfg, needs)


def _check_disk(cfg: CrosscoderRunnerConfig[Any], needs: RunNeeds) -> None:
    on_disk: dict[int, int] = defaultdict(int)
    places: dict[int, str] = {}
    for path, wanted in (
        (cfg.checkpoint_path, needs.checkpoints * needs.checkpoint),
        (cfg.output_path, needs.weights),
    ):
        if path is not None and wanted:
            device = _file_system(path)
            on_disk[device] += wanted
            places[device] = path
    for device, wanted in on_disk.items():
        free = free_disk(places[device])
        if wanted > free:
            raise ConfigError(
                f"The run writes up to {in_gb(wanted)} to the disk of {places[device]}, where {in_gb(free)} are free: "
                f"{needs.checkpoints} checkpoints of {in_gb(needs.checkpoint)} and the crosscoder. Make room, choose "
                "another checkpoint_path, or lower n_checkpoints or n_kept_checkpoints."
            )


def _file_system(path: str) -> int:
    folder = Path(path).resolve()
    return next(place for place in (folder, *folder.parents) if place.exists()).stat().st_dev


def _itemsize(dtype: str) -> int:
    return getattr(torch, dtype.removeprefix("torch.")).itemsize
