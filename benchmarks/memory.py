"""Whether a long training run leaks: its memory, open files and threads while it trains on the demo's pair.

A process of its own trains with everything that a run does (harvest in a thread, steps, logging, evaluations,
checkpoints of which a few are kept, a new epoch whenever the documents end) until it is asked to stop as a system
would, by SIGTERM. Every ten seconds another process notes its resident memory, its open file descriptors and its
threads. The slope of the memory is that of least squares over what follows the warm-up (the first sixth); its standard
error is taken over means of `BLOCK` samples, because memory of one moment resembles that of the next.
"""

from __future__ import annotations

import csv
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from common import parser, report
from datasets import Dataset
from sae_lens import LoggingConfig
from transformers.utils import logging as transformers_logging

from sae_lens_crosscoder import CrosscoderTrainingRunner, DatasetConfig
from sae_lens_crosscoder.demo.crosscoder import BATCH_TOKENS, CrosscoderSizes, crosscoder_run
from sae_lens_crosscoder.demo.documents import generator
from sae_lens_crosscoder.demo.pair import PairConfig, load_or_make_pair
from sae_lens_crosscoder.errors import TrainingInterrupted

INTERVAL_SECONDS, BLOCK = 10, 12
N_DOCUMENTS, STEPS_BETWEEN_CHECKPOINTS, STEPS_BETWEEN_LOGS, LOGS_BETWEEN_EVALUATIONS = 16_000, 200, 20, 10
N_STEPS = 1_000_000
"""More than any run gets to: the clock ends it."""


class Sample(NamedTuple):
    """The training process at one moment."""

    seconds: float
    """Since the training process began."""

    rss_mb: float
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Slope:
    """How memory changes, in MB an hour."""

    value: float
    standard_error: float


def train(folder: Path, pair_folder: Path, begun: Event) -> None:
    """Train until SIGTERM comes."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers_logging.disable_progress_bar()
    pair = load_or_make_pair(pair_folder, PairConfig())
    documents = pair.corpus.mixture(N_DOCUMENTS, generator(0, "crosscoder training")).tokens
    Dataset.from_dict({"input_ids": documents.tolist()}).save_to_disk(folder / "data")
    sizes = CrosscoderSizes(d_sae=384, k=28, n_steps=N_STEPS, lr=1.5e-3, n_eval_batches=4)
    data = [DatasetConfig(path=str(folder / "data"), label="documents")]
    cfg = crosscoder_run(pair, pair.sources, sizes, folder / "output", "cpu", datasets=data, prefetch_llm_batches=1)
    cfg.checkpoint_path = str(folder / "checkpoints")
    cfg.n_checkpoints, cfg.n_kept_checkpoints = N_STEPS // STEPS_BETWEEN_CHECKPOINTS, 2
    cfg.logger = LoggingConfig(
        log_to_wandb=False,
        wandb_log_frequency=STEPS_BETWEEN_LOGS,
        eval_every_n_wandb_logs=LOGS_BETWEEN_EVALUATIONS,
    )
    sys.stderr = (folder / "progress").open("w")
    runner = CrosscoderTrainingRunner(cfg)
    begun.set()
    try:
        runner.run()
    except TrainingInterrupted as interrupted:
        sys.exit(0 if interrupted.checkpoint is not None else 1)


def watch(n_samples: int, folder: Path, pair_folder: Path) -> list[Sample]:
    """Notes of a training process while it trains."""
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    process = context.Process(target=train, args=(folder, pair_folder, begun), daemon=True)
    process.start()
    while not begun.wait(1):
        assert process.is_alive(), "the training process ended before it trained"
    watched = psutil.Process(process.pid)
    samples: list[Sample] = []
    start = time.monotonic()
    for _ in range(n_samples):
        time.sleep(INTERVAL_SECONDS)
        with watched.oneshot():
            rss_mb, n_files, n_threads = watched.memory_info().rss / 2**20, watched.num_fds(), watched.num_threads()
        samples.append(Sample(time.monotonic() - start, rss_mb, n_files, n_threads))
    process.terminate()
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"The training process ended with {process.exitcode}.")
    return samples


def slope(seconds: Sequence[float], values: Sequence[float], block: int = BLOCK) -> Slope:
    """Slope of values at these times, by the hour."""
    n_blocks = len(values) // block
    hours, means = (
        np.asarray(row[: n_blocks * block]).reshape(n_blocks, block).mean(axis=1)
        for row in (np.asarray(seconds) / 3600, values)
    )
    centred = hours - hours.mean()
    value = float(centred @ means / (centred @ centred))
    residuals = means - means.mean() - value * centred
    return Slope(value, float(np.sqrt(residuals @ residuals / (n_blocks - 2) / (centred @ centred))))


def summary(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """One row for each thing that was watched; begin and end are medians of a block of samples."""
    warm = samples[len(samples) // 6 :]
    rows: list[dict[str, Any]] = []
    seconds = [sample.seconds for sample in warm]
    for name in Sample._fields[1:]:
        values = [getattr(sample, name) for sample in warm]
        fitted = slope(seconds, values)
        rows.append(
            {
                "name": name,
                "after_warm_up": statistics.median(values[:BLOCK]),
                "at_the_end": statistics.median(values[-BLOCK:]),
                "least": min(values),
                "most": max(values),
                "slope_per_hour": fitted.value,
                "standard_error": fitted.standard_error,
            }
        )
    return rows


def by_minute(samples: Sequence[Sample]) -> list[float]:
    per_minute = 60 // INTERVAL_SECONDS
    minutes = [samples[i : i + per_minute] for i in range(0, len(samples), per_minute)]
    return [round(statistics.fmean(sample.rss_mb for sample in minute), 1) for minute in minutes]


def made(folder: Path) -> dict[str, Any]:
    """What the run did meanwhile."""
    steps = [int(row["step"]) for row in csv.DictReader((folder / "output" / "training_curve.csv").open())]
    evaluations = list(csv.DictReader((folder / "output" / "evaluations.csv").open()))
    return {
        "n_steps": steps[-1],
        "n_tokens": steps[-1] * BATCH_TOKENS,
        "n_logged": len(steps),
        "n_evaluations": len(evaluations),
        "n_checkpoints": steps[-1] // STEPS_BETWEEN_CHECKPOINTS,
    }


def main() -> None:
    arguments = parser(__doc__ or "", quick="ten minutes")
    arguments.add_argument("--minutes", type=float, default=60, help="how long to train")
    arguments.add_argument("--pair", type=Path, help="folder that holds the demo's pair of models, or is to hold it")
    options = arguments.parse_args()
    minutes = 10 if options.quick else options.minutes
    n_samples = round(minutes * 60 / INTERVAL_SECONDS)
    if n_samples - n_samples // 6 < 3 * BLOCK:
        arguments.error(f"--minutes {minutes:g} is too short for a slope: give at least 8")
    with tempfile.TemporaryDirectory() as folder:
        samples = watch(n_samples, Path(folder), options.pair or Path(folder) / "pair")
        facts = made(Path(folder))
    report(summary(samples), options, minutes=minutes, **facts, rss_mb_by_minute=by_minute(samples))
    print(", ".join(f"{name}: {value}" for name, value in facts.items()))


if __name__ == "__main__":
    main()
