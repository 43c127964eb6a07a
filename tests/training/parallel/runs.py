"""Whole runs of one process and of several; run as a process of `torchrun` it makes the latter."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from helpers import batchtopk_config, run_config, standard_config, tiny_pair, tiny_tokenizer, token_dataset
from sae_lens import LoggingConfig

from sae_lens_crosscoder import (
    CrosscoderTrainer,
    CrosscoderTrainingRunner,
    GatedTrainingCrosscoderConfig,
    TopKTrainingCrosscoderConfig,
)
from sae_lens_crosscoder.errors import FinishedError, TrainingInterrupted
from sae_lens_crosscoder.ranks import Ranks
from sae_lens_crosscoder.training.parallel.joining import leave

CONFIGS: dict[str, Any] = {"standard": standard_config, "batchtopk": batchtopk_config}
COUNTED_CONFIGS: dict[str, Any] = {
    **CONFIGS,
    "topk": lambda **fields: TopKTrainingCrosscoderConfig(d_in=32, d_sae=32, k=3, **fields),
    "gated": lambda **fields: GatedTrainingCrosscoderConfig(d_in=32, d_sae=32, **fields),
}
N_DATA_SHARDS = 4


def run(case: dict[str, Any], folder: Path) -> None:
    """One run, stopped by the last process's wish after `stops_after` steps if the case says so."""
    torch.manual_seed(5 + Ranks().rank)  # processes draw unlike weights; those of the first count
    cfg = run_config(
        COUNTED_CONFIGS[case["architecture"]](dtype="float64"),
        folder,
        dtype="float64",
        training_tokens=64 * case.get("n_steps", 12),
        n_data_shards=N_DATA_SHARDS,
        feature_sampling_window=5,
        **{
            **case.get("fields", {}),
            "logger": LoggingConfig(False, wandb_log_frequency=case.get("log_every", 1), eval_every_n_wandb_logs=5),
        },
    )
    model = tiny_pair(dtype=torch.float64, tokenizer=tiny_tokenizer())
    step = CrosscoderTrainer.step

    def stopping(self: CrosscoderTrainer, batch: torch.Tensor) -> Any:
        if self.n_training_steps + 1 == case.get("stops_after") and self.division.ranks.rank == Ranks().n - 1:
            self.stop_requested = True
        is_first_try = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
        if is_first_try and self.division.ranks.rank == 1:
            if self.n_training_steps == case.get("killed_at"):
                os.kill(os.getpid(), signal.SIGKILL)
            if self.n_training_steps == case.get("hangs_at"):
                os.kill(os.getpid(), signal.SIGSTOP)
        return step(self, batch)

    CrosscoderTrainer.step = stopping
    try:
        CrosscoderTrainingRunner(cfg, token_dataset(200), model).run()
    except TrainingInterrupted:
        assert "stops_after" in case
    except FinishedError:
        assert case.get("is_finished")
    finally:
        CrosscoderTrainer.step = step


def counting(case: dict[str, Any], folder: Path) -> None:
    """One run that also writes how many bytes this process gave to exchanges until each step began."""
    n_bytes, before_steps = 0, []
    all_reduce, all_gather, step = dist.all_reduce, dist.all_gather, CrosscoderTrainer.step

    def counted_reduce(tensor: torch.Tensor, *arguments: Any) -> None:
        nonlocal n_bytes
        n_bytes += tensor.nbytes
        all_reduce(tensor, *arguments)

    def counted_gather(parts: list[torch.Tensor], tensor: torch.Tensor) -> None:
        nonlocal n_bytes
        n_bytes += tensor.nbytes
        all_gather(parts, tensor)

    def noting(self: CrosscoderTrainer, batch: torch.Tensor) -> Any:
        before_steps.append(n_bytes)
        return step(self, batch)

    dist.all_reduce, dist.all_gather, CrosscoderTrainer.step = counted_reduce, counted_gather, noting
    try:
        run(case, folder)
    finally:
        dist.all_reduce, dist.all_gather, CrosscoderTrainer.step = all_reduce, all_gather, step
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"bytes_{Ranks().rank}.json").write_text(json.dumps(before_steps))


def main(cases: Path, out: Path) -> None:
    """Make every run in a folder of its name."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    for name, case in json.loads(cases.read_text()).items():
        (counting if case.get("counts") else run)(case, out / name)
    leave()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    warnings.filterwarnings("ignore", message="The data set ended")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
