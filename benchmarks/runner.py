"""How close a whole training run comes to what its two parts allow: the models' bare forwards, and the step alone.

A run of `CrosscoderTrainingRunner` (two models, store, step, logging, saving) is timed with the thread that harvests
while the crosscoder trains and without it. In the same round the bare forwards of both models, stopped at the layer
that is read, and the step on activations in memory are timed alone. What they allow for the passes and steps that the
run made is, where both work on one processor, the *sum* of the two, because both keep all cores busy; where the models
or the trainer are on CUDA it is the *larger* of the two. `share_of_allowed` is that time by the run's, as the median
over rounds, which are in random order; `share_of_allowed_processor_time` is the same of the seconds that the process
had of the processors, which others who use the machine do not change.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import parse_arguments, report
from harvest import CONTEXT, D_VOCAB, make_data, make_model
from sae_lens import LoggingConfig

from sae_lens_crosscoder import (
    BatchTopKTrainingCrosscoderConfig,
    CrosscoderRunnerConfig,
    CrosscoderTrainer,
    CrosscoderTrainingRunner,
    JointModel,
    Source,
)
from sae_lens_crosscoder.activations import SourceScaler
from sae_lens_crosscoder.training.trainer import TrainerParts

N_LAYERS, WIDTH, D_SAE, K = 4, 256, 2048, 32
PROMPTS, BATCH, N_BATCHES_IN_BUFFER = 16, 1024, 8
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Bench:
    """The models, their data, and runs over them."""

    def __init__(self, n_steps: int) -> None:
        self.n_steps = n_steps
        self.models = [make_model(N_LAYERS, WIDTH, seed).to(DEVICE) for seed in range(2)]
        self.data = make_data()

    def runner(self, folder: str, in_background: bool) -> CrosscoderTrainingRunner:
        hook = f"blocks.{N_LAYERS // 2}.hook_resid_pre"
        cfg = CrosscoderRunnerConfig(
            sae=BatchTopKTrainingCrosscoderConfig(d_in=2 * WIDTH, d_sae=D_SAE, k=float(K)),
            sources=[Source(f"m{i}", "random", hook, WIDTH) for i in range(2)],
            dataset_path="in-memory",
            context_size=CONTEXT,
            training_tokens=self.n_steps * BATCH,
            train_batch_size_tokens=BATCH,
            store_batch_size_prompts=PROMPTS,
            n_batches_in_buffer=N_BATCHES_IN_BUFFER * BATCH // CONTEXT,
            n_batches_for_norm_estimate=4,
            n_eval_batches=0,
            exclude_special_tokens=False,
            prepend_bos=False,
            prefetch_llm_batches=int(in_background),
            device=DEVICE,
            output_path=str(Path(folder) / "output"),
            overwrite_output=True,
            checkpoint_path=None,
            logger=LoggingConfig(log_to_wandb=False, wandb_log_frequency=10),
            verbose=False,
        )
        return CrosscoderTrainingRunner(cfg, self.data, JointModel(cfg.joint_sources, self.models))

    def step(self, folder: str) -> Times:
        """A step alone, on batches in memory, from weights that are as young as the run's."""
        runner = self.runner(folder, in_background=False)
        batches = [next(runner.activations_store) for _ in range(4)]
        sources = runner.model.sources
        parts = TrainerParts(batches=iter(batches), scaler=SourceScaler(sources), sources=sources)
        trainer = CrosscoderTrainer(runner.cfg.to_sae_trainer_config(), runner.sae, parts)
        trainer.activation_scaler.estimate_scaling_factor(2 * WIDTH, iter(batches), 4)

        def run() -> None:
            for i in range(self.n_steps):
                trainer.step(batches[i % len(batches)])
                trainer.n_training_steps += 1

        return Times.of(run) / self.n_steps

    @torch.no_grad()
    def forwards(self, n_passes: int = 8) -> Times:
        """A forward pass of both models alone, stopped at the layer that is read."""
        tokens = torch.randint(0, D_VOCAB, (PROMPTS, CONTEXT), device=DEVICE)

        def run() -> None:
            for _ in range(n_passes):
                for model in self.models:
                    model(tokens, stop_at_layer=N_LAYERS // 2, return_type=None)

        return Times.of(run) / n_passes

    def whole(self, folder: str, in_background: bool) -> tuple[Times, int]:
        """A whole run, and the forward passes that it made."""
        runner = self.runner(folder, in_background)
        return Times.of(runner.run), runner.activations_store.n_dataset_processed // PROMPTS


@dataclass(frozen=True)
class Times:
    """Seconds by the clock, and seconds of the processors."""

    clock: float
    processor: float

    @classmethod
    def of(cls, run: Callable[[], Any]) -> Times:
        clock, processor = time.perf_counter(), time.process_time()
        run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return cls(time.perf_counter() - clock, time.process_time() - processor)

    def __truediv__(self, n: int) -> Times:
        return Times(self.clock / n, self.processor / n)


def measure(n_rounds: int, n_steps: int) -> list[dict[str, Any]]:
    bench = Bench(n_steps)
    names = {"with a thread that harvests": True, "one after the other": False}
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        parts: dict[str, Callable[[], Any]] = {
            "step": lambda: bench.step(folder),
            "pass": bench.forwards,
            **{name: lambda threaded=threaded: bench.whole(folder, threaded) for name, threaded in names.items()},
        }
        for _ in range(n_rounds):
            rounds.append({name: parts[name]() for name in random.sample(list(parts), len(parts))})
    return [row(name, rounds, n_steps) for name in names]


def row(name: str, rounds: list[dict[str, Any]], n_steps: int) -> dict[str, Any]:
    def share(measured: str) -> float:
        shares: list[float] = []
        for found in rounds:
            times, n_passes = found[name]
            alone = n_passes * getattr(found["pass"], measured), n_steps * getattr(found["step"], measured)
            shares.append((max(alone) if DEVICE == "cuda" else sum(alone)) / getattr(times, measured))
        return statistics.median(shares)

    taken = statistics.median(found[name][0].clock for found in rounds)
    return {
        "name": name,
        "shape": f"{DEVICE}: 2 models of {N_LAYERS} layers, width {WIDTH}; F {D_SAE}, k {K}, batch {BATCH}",
        "tokens_per_second": round(n_steps * BATCH / taken),
        "seconds_median": taken,
        "harvest_floor_seconds": statistics.median(found["pass"].clock * found[name][1] for found in rounds),
        "steps_alone_seconds": statistics.median(found["step"].clock * n_steps for found in rounds),
        "share_of_allowed": share("clock"),
        "share_of_allowed_processor_time": share("processor"),
    }


def main() -> None:
    options = parse_arguments(__doc__ or "")
    report(measure(n_rounds=3 if options.quick else 9, n_steps=24 if options.quick else 96), options)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
