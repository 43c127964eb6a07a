"""Runs that are killed with SIGKILL at random moments and started again.

As a program, `python tests/training/crashes.py --kills 100` prints what came of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import random
import shutil
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

from sae_lens_crosscoder import CrosscoderTrainer, CrosscoderTrainingRunner, PairedActivationsStore
from sae_lens_crosscoder.training.step_table import StepTable

N_STEPS = 60
ACTIVITIES: dict[str, tuple[type[Any], str]] = {
    "saving": (CrosscoderTrainer, "save_checkpoint"),
    "logging": (StepTable, "write"),
    "refilling": (PairedActivationsStore, "add_pass"),
}
"""What a kill may fall into, and the method that does it."""


def train(folder: str, signals: Signals) -> None:
    """One run, or what is left of it; it saves often and refills its buffer every few steps."""
    signals.begun.set()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(5)
    for n, (owner, method) in enumerate(ACTIVITIES.values()):
        _note(owner, method, signals, n)
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


def _note(owner: type[Any], method: str, signals: Signals, n: int) -> None:
    """Have a method say when it begins and ends."""
    whole = getattr(owner, method)

    def noting(*arguments: Any, **named: Any) -> Any:
        signals.doing[n] = 1
        result = whole(*arguments, **named)
        signals.doing[n] = 0
        if method == "save_checkpoint":
            signals.saved.set()
        return result

    setattr(owner, method, noting)


@dataclass(frozen=True)
class Signals:
    """What a run tells the process that kills it."""

    begun: Any
    """Event: the libraries have been imported."""

    saved: Any
    """Event: the first checkpoint is there."""

    doing: Any
    """One number an activity: 1 while the run is at it."""


@dataclass(frozen=True)
class Outcome:
    """What was seen after one kill and one new start."""

    moment: float
    """Share of the unbroken run's time, from its imports or its first checkpoint on, after which the run was killed."""

    killed: bool
    """Whether the run was still there to be killed."""

    activities: list[str]
    """What the kill fell into."""

    left: list[str]
    """What the kill left half-written."""

    resumed: bool
    """Whether the killed run had left a checkpoint or its result."""

    problems: list[str]
    """What was not as it should be; empty if all was."""


def crash_and_resume(n_kills: int, seed: int, folder: Path, after_first_checkpoint: bool = False) -> list[Outcome]:
    """Kill runs at random moments, each run once, and compare what the resumed ones give with an unbroken one.

    Saving takes most of the time of such a run, so three of four moments are put off until it is at an activity that is
    drawn.

    Args:
        n_kills: How many runs are killed; one that ends before its moment is checked too, and another one killed.
        seed: Seed of the moments.
        folder: Where all runs write.
        after_first_checkpoint: Whether the moments lie after the first checkpoint, or anywhere.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crashes"])
    generator = random.Random(seed)
    process, signals = _begin(context, folder / "unbroken", after_first_checkpoint)
    start = time.monotonic()
    process.join()
    duration = time.monotonic() - start
    expected = _result(folder / "unbroken")
    outcomes: list[Outcome] = []
    while sum(outcome.killed for outcome in outcomes) < n_kills:
        place, moment = folder / f"run{len(outcomes)}", generator.random()
        process, signals = _begin(context, place, after_first_checkpoint)
        process.join(moment * duration)
        _wait_for(generator.choice([None, *ACTIVITIES]), process, signals)
        process.kill()
        process.join()
        problems = [] if process.exitcode in (0, -signal.SIGKILL) else [f"the run failed by itself: {process.exitcode}"]
        standing = [path for path in place.rglob("manifest.json") if ".tmp" not in str(path.relative_to(place))]
        problems += [f"{path.parent} is not whole" for path in standing if not _is_whole(path)]
        activities = [name for name, is_on in zip(ACTIVITIES, signals.doing, strict=True) if is_on]
        left = [path.name for path in place.rglob("*.tmp*")]
        finished = (place / "output" / "manifest.json").is_file()
        again, _ = _begin(context, place)
        again.join()
        if again.exitcode != 0 and not finished:
            problems.append(f"the resumed run ended with {again.exitcode}")
        problems += [f"left behind: {path.name}" for path in place.rglob("*.tmp*")]
        problems += _differences(_result(place), expected)
        outcomes.append(
            Outcome(moment, process.exitcode == -signal.SIGKILL, activities, left, bool(standing), problems)
        )
        shutil.rmtree(place)
    return outcomes


def _begin(context: Any, place: Path, awaits_checkpoint: bool = False) -> tuple[Any, Signals]:
    """Start a run; return when its libraries have been imported, or when its first checkpoint is there."""
    signals = Signals(context.Event(), context.Event(), context.Array("b", len(ACTIVITIES), lock=False))
    process = context.Process(target=train, args=(str(place), signals))
    process.start()
    assert (signals.saved if awaits_checkpoint else signals.begun).wait(300), "the run did not begin"
    return process, signals


def _wait_for(activity: str | None, process: Any, signals: Signals) -> None:
    """Return when the run is at an activity, or has ended."""
    if activity is not None:
        n = list(ACTIVITIES).index(activity)
        while process.is_alive() and not any(signals.doing[n] for _ in range(1000)):
            pass  # no sleep: a row is written in less time than the shortest one takes


def _is_whole(manifest: Path) -> bool:
    """Whether the files beside a manifest are what it says; asked here without the package's own check."""
    files = json.loads(manifest.read_text())["files"]
    paths = {name: manifest.parent / name for name in files}
    return all(
        path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == files[name]["sha256"]
        for name, path in paths.items()
    )


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
    parser.add_argument("--after-first-checkpoint", action="store_true", help="kill no run that has nothing to resume")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = crash_and_resume(options.kills, options.seed, Path(folder), options.after_first_checkpoint)
    killed = [outcome for outcome in outcomes if outcome.killed]
    print(f"{len(killed)} kills, {sum(o.resumed for o in killed)} after the first checkpoint, seed {options.seed}")
    print(f"{len(outcomes) - len(killed)} runs ended before their moment and were started once more")
    for name, n in Counter(name for outcome in killed for name in outcome.activities or ["stepping"]).items():
        print(f"  {n} while {name}")
    print(f"  {sum(bool(o.left) for o in killed)} left something half-written, which the new start removed")
    print(f"{sum(not o.problems for o in killed)} resumed runs equal the unbroken one to the last bit")
    problems = Counter(problem for outcome in outcomes for problem in outcome.problems)
    for problem, count in problems.items():
        print(f"  {count} x {problem}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    sys.modules["crashes"] = sys.modules["__main__"]
    main()
