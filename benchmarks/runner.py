"""How close a whole training run comes to what its two parts allow, and how it compares with SAELens's step in it.

Runs of `CrosscoderTrainingRunner` (two models, store, step, logging) are timed with the thread that harvests while the
crosscoder trains, without it, and with SAELens's BatchTopK on the joint input in place of ours; `speedup` is that
run's time by the row's. In the same round the bare forwards of both models, stopped at the layer that is read, and the
step on activations in memory are timed alone, before and after the runs.

What they allow for the passes and steps that a run made: on CUDA the *larger* of the two, which overlap. On a processor
both compete for the same cores, so that no overlap saves work: the *sum* of their processor seconds by the number of
threads, measured on one thread each, where nobody waits for another. `share_of_allowed` is that time by the run's;
`share_of_allowed_processor_time` compares processor seconds only, which others who use the machine change less. Both
are medians over rounds, whose runs are in random order.
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
from common import median_ratio, parse_arguments, report
from harvest import CONTEXT, D_VOCAB, make_data, make_model
from sae_lens import BatchTopKTrainingSAEConfig, LoggingConfig

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

N_LAYERS, WIDTH, D_SAE, K = 4, 512, 8192, 100
PROMPTS, BATCH, N_BATCHES_IN_BUFFER = 16, 2048, 4
N_STEPS_ALONE = 4
SAELENS = "SAELens's BatchTopK in it, with the thread"
RUNS = {"with a thread that harvests": (True, True), "one after the other": (False, True), SAELENS: (True, False)}
"""Whether each run harvests in a thread, and whether it trains our crosscoder."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Bench:
    """The models, their data, and runs over them."""

    def __init__(self, n_steps: int) -> None:
        self.n_steps = n_steps
        self.models = [make_model(N_LAYERS, WIDTH, seed).to(DEVICE) for seed in range(2)]
        self.data = make_data()

    def runner(self, folder: str, in_background: bool, is_ours: bool = True) -> CrosscoderTrainingRunner:
        hook = f"blocks.{N_LAYERS // 2}.hook_resid_pre"
        sae: Any = BatchTopKTrainingCrosscoderConfig if is_ours else BatchTopKTrainingSAEConfig
        cfg = CrosscoderRunnerConfig(
            sae=sae(d_in=2 * WIDTH, d_sae=D_SAE, k=float(K), normalize_activations="none"),
            sources=[Source(f"m{i}", "random", hook, WIDTH) for i in range(2)],
            dataset_path="in-memory",
            context_size=CONTEXT,
            training_tokens=self.n_steps * BATCH,
            train_batch_size_tokens=BATCH,
            store_batch_size_prompts=PROMPTS,
            n_batches_in_buffer=N_BATCHES_IN_BUFFER * BATCH // CONTEXT,
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

        def run() -> None:
            for i in range(N_STEPS_ALONE):
                trainer.step(batches[i % len(batches)])
                trainer.n_training_steps += 1

        run()
        return alone(run) / N_STEPS_ALONE

    @torch.no_grad()
    def forwards(self, n_passes: int = 8) -> Times:
        """A forward pass of both models alone, stopped at the layer that is read."""
        tokens = torch.randint(0, D_VOCAB, (PROMPTS, CONTEXT), device=DEVICE)

        def run() -> None:
            for _ in range(n_passes):
                for model in self.models:
                    model(tokens, stop_at_layer=N_LAYERS // 2, return_type=None)

        return alone(run) / n_passes

    def whole(self, folder: str, in_background: bool, is_ours: bool) -> tuple[Times, int]:
        """A whole run, and the forward passes that it made."""
        runner = self.runner(folder, in_background, is_ours)
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


def alone(run: Callable[[], Any]) -> Times:
    """The times of a part, on one thread where it would wait for its own threads."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1 if DEVICE == "cpu" else n_threads)
    try:
        return Times.of(run)
    finally:
        torch.set_num_threads(n_threads)


def measure(n_rounds: int, n_steps: int) -> list[dict[str, Any]]:
    bench = Bench(n_steps)
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(n_rounds):
            found: dict[str, Any] = {"before": (bench.forwards(), bench.step(folder))}
            for name in random.sample(list(RUNS), len(RUNS)):
                found[name] = bench.whole(folder, *RUNS[name])
            found["after"] = (bench.forwards(), bench.step(folder))
            rounds.append(found)
    return [row(name, rounds, n_steps) for name in RUNS]


def allowed(found: dict[str, Any], name: str, n_steps: int) -> Times:
    """The least that the passes and steps of a run take by the clock, and of the processors."""
    parts = [found["before"], found["after"]]
    n_passes = found[name][1]
    passes = [n_passes * statistics.mean(getattr(p, kind) for p, _ in parts) for kind in ("clock", "processor")]
    steps = [n_steps * statistics.mean(getattr(s, kind) for _, s in parts) for kind in ("clock", "processor")]
    processor = passes[1] + steps[1]
    return Times(max(passes[0], steps[0]) if DEVICE == "cuda" else processor / torch.get_num_threads(), processor)


def row(name: str, rounds: list[dict[str, Any]], n_steps: int) -> dict[str, Any]:
    clocks = {run: [found[run][0].clock for found in rounds] for run in RUNS}
    floors = [allowed(found, name, n_steps) for found in rounds]
    is_ours = RUNS[name][1]
    return {
        "name": name,
        "shape": f"{DEVICE}: 2 models of {N_LAYERS} layers, width {WIDTH}; F {D_SAE}, k {K}, batch {BATCH}",
        "tokens_per_second": round(n_steps * BATCH / statistics.median(clocks[name])),
        "seconds_median": statistics.median(clocks[name]),
        "speedup": median_ratio(clocks[SAELENS], clocks[name]),
        "processor_speedup": median_ratio(
            [found[SAELENS][0].processor for found in rounds], [found[name][0].processor for found in rounds]
        ),
        # The step that is timed alone is ours.
        "share_of_allowed": median_ratio([f.clock for f in floors], clocks[name]) if is_ours else None,
        "share_of_allowed_processor_time": median_ratio(
            [f.processor for f in floors], [found[name][0].processor for found in rounds]
        )
        if is_ours
        else None,
    }


def main() -> None:
    options = parse_arguments(__doc__ or "")
    report(measure(n_rounds=3 if options.quick else 7, n_steps=12), options)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
