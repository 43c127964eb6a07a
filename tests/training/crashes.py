"""Runs that are killed with SIGKILL at random moments and started again.

As a program, `python tests/training/crashes.py --kills 100` prints what came of them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))  # forked processes find the helpers as well

from helpers import batchtopk_config, run_config, tiny_pair, token_dataset

from sae_lens_crosscoder import CrosscoderTrainingRunner

N_STEPS = 60


def train(folder: str, begun: Any) -> None:
    """One run, or what is left of it; it saves often and refills its buffer every few steps.

    Args:
        folder: Where it writes.
        begun: Event that is set when the libraries have been imported.
    """
    begun.set()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(5)
    cfg = run_config(
        batchtopk_config(dtype="float64"),
        Path(folder),
        dtype="float64",
        training_tokens=64 * N_STEPS,
        n_checkpoints=N_STEPS // 3,
        n_kept_checkpoints=2,
        resume_from_checkpoint="auto",
        prefetch_llm_batches=2,
    )
    sys.stderr = Path("/dev/null").open("w")  # noqa: SIM115 -- progress bars of a hundred runs
    CrosscoderTrainingRunner(cfg, token_dataset(90), tiny_pair(dtype=torch.float64)).run()


@dataclass(frozen=True)
class Outcome:
    """What was seen after one kill and one new start."""

    moment: float
    """Share of the unbroken run's time, from the imports on, after which the run was killed."""

    problems: list[str]
    """What was not as it should be; empty if all was."""

    resumed: bool
    """Whether the killed run had left a checkpoint or its result."""


def crash_and_resume(n_kills: int, seed: int, folder: Path) -> list[Outcome]:
    """Kill runs at random moments, each run once, and compare what the resumed ones give with an unbroken one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crashes"])
    generator = random.Random(seed)
    process = _begin(context, folder / "unbroken")
    start = time.monotonic()
    process.join()
    duration = time.monotonic() - start
    expected = _result(folder / "unbroken")
    outcomes: list[Outcome] = []
    for n in range(n_kills):
        place, moment = folder / f"run{n}", generator.random()
        process = _begin(context, place)
        process.join(moment * duration)
        process.kill()
        process.join()
        problems = [] if process.exitcode in (0, -signal.SIGKILL) else [f"the run failed by itself: {process.exitcode}"]
        resumed = any(place.rglob("manifest.json"))
        finished = (place / "output" / "manifest.json").is_file()
        code = _finish(context, place)
        if code != 0 and not finished:
            problems.append(f"the resumed run ended with {code}")
        problems += [f"left behind: {path.name}" for path in place.rglob("*.tmp*")]
        outcomes.append(Outcome(moment, problems + _differences(_result(place), expected), resumed))
    return outcomes


def _begin(context: Any, place: Path) -> Any:
    """Start a run; return when its libraries have been imported."""
    begun = context.Event()
    process = context.Process(target=train, args=(str(place), begun))
    process.start()
    assert begun.wait(300), "the run did not begin"
    return process


def _finish(context: Any, place: Path) -> int | None:
    process = _begin(context, place)
    process.join()
    return process.exitcode


def _result(place: Path) -> dict[str, Any]:
    output = place / "output"
    weights = load_file(output / "sae_weights.safetensors") if (output / "sae_weights.safetensors").is_file() else {}
    return {**weights, "curve": (output / "training_curve.csv").read_text()}


def _differences(given: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    if given.keys() != expected.keys():
        return [f"the result has {sorted(given)}"]
    return [f"{name} differs" for name, value in expected.items() if not _equal(given[name], value)]


def _equal(given: Any, expected: Any) -> bool:
    return torch.equal(given, expected) if isinstance(expected, torch.Tensor) else given == expected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = crash_and_resume(options.kills, options.seed, Path(folder))
    problems = Counter(problem for outcome in outcomes for problem in outcome.problems)
    print(f"{len(outcomes)} kills, {sum(o.resumed for o in outcomes)} after the first checkpoint")
    print(f"{sum(not o.problems for o in outcomes)} resumed runs equal the unbroken one to the last bit")
    for problem, count in problems.items():
        print(f"  {count} x {problem}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    sys.modules["crashes"] = sys.modules["__main__"]
    main()
