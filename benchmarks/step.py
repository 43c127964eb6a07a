"""A training step on the joint input: ours, in the trainer of `CrosscoderTrainingRunner`, and the same step elsewhere.

Time: every contender makes one step in every round, in random order, on the same batches. `seconds_median` is the
median over rounds, `speedup` the median of the ratios of SAELens's BatchTopK to the contender in the same round, and
the same over sparsify's TopK and SAELens's Standard. `dense_share` is 10 B D F (the operations of a dense step) by
seconds, as a share of what the machine multiplies in float32, measured in the same rounds: above 1 no dense step can
be. `l0` is the number of active latents a token in the measured steps. Memory (Linux): each contender runs in a process
of its own; `peak_mb` is the peak of its steps above data, weights and the optimizer's moments. Quality: all are trained
on the same tokens, and read on others.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import itertools
import json
import random
import statistics
import subprocess
import sys
import time
import warnings
from typing import Any

import torch
from common import machine, median_ratio, parse_arguments, peak_above, print_table, report, seconds, status_mb
from step_contenders import (
    CONTENDERS,
    OURS,
    REFERENCE,
    SPARSIFY,
    STANDARD,
    Contender,
    Shape,
    batches,
    installed,
    n_active,
)
from step_quality import quality_rows

N_WARM_UP = 4
LARGE = Shape(width=768, d_sae=16384)
GROWTH = [Shape(d_sae=4096), Shape(d_sae=16384), Shape(k=32), Shape(k=64), Shape(batch=1024), Shape(batch=4096)]
MAIN = [REFERENCE, SPARSIFY, OURS]


def time_rows(shape: Shape, names: list[str], n_rounds: int) -> list[dict[str, Any]]:
    contenders = {name: CONTENDERS[name](shape) for name in names}
    data = batches(shape)
    weights = torch.randn(shape.d_sae, shape.d_in)
    for contender in contenders.values():
        for x in data[:N_WARM_UP]:
            contender.step(x)
    wall: dict[str, list[float]] = {name: [] for name in (*names, "matmul")}
    processor: dict[str, list[float]] = {name: [] for name in names}
    l0: dict[str, list[float]] = {name: [] for name in names}
    outputs: dict[str, Any] = {}

    def step(name: str, x: torch.Tensor) -> None:
        outputs[name] = contenders[name].step(x)

    for _, x in zip(range(n_rounds), itertools.cycle(data), strict=False):
        for name in random.sample(list(wall), len(wall)):
            if name == "matmul":
                wall[name].append(seconds(lambda x=x: torch.mm(x, weights.T)))
                continue
            start = time.process_time()
            wall[name].append(seconds(lambda x=x, name=name: step(name, x)))
            processor[name].append(time.process_time() - start)
            l0[name].append(n_active(outputs.pop(name), shape.d_sae).sum().item() / shape.batch)
    return [{**_row(name, shape, wall, processor), "l0": statistics.median(l0[name])} for name in names]


def _row(name: str, shape: Shape, wall: dict[str, list[float]], processor: dict[str, list[float]]) -> dict[str, Any]:
    def speedup(reference: str, times: dict[str, list[float]]) -> float | None:
        return median_ratio(times[reference], times[name]) if reference in times else None

    return {
        "name": name,
        "shape": str(shape),
        "seconds_median": statistics.median(wall[name]),
        "processor_seconds_median": statistics.median(processor[name]),
        "speedup": speedup(REFERENCE, wall),
        "processor_speedup": speedup(REFERENCE, processor),
        "over_sparsify": speedup(SPARSIFY, wall),
        "processor_over_sparsify": speedup(SPARSIFY, processor),
        "over_standard": speedup(STANDARD, wall),
        "processor_over_standard": speedup(STANDARD, processor),
        # The product that is timed beside it is a fifth of a dense step's.
        "dense_share": 5 * median_ratio(wall["matmul"], wall[name]),
    }


def measure_memory(name: str, shape: Shape) -> None:
    """Print the peak of this process's steps as JSON. Run in a process of its own."""
    data = batches(shape, 2)
    gc.collect()
    start = status_mb("VmRSS")
    contender: Contender = CONTENDERS[name](shape)

    def steps() -> None:
        for x in data:
            contender.step(x)

    steps()
    print(json.dumps({"peak_mb": peak_above(start, steps) - contender.held_mb}))


def peak_in_own_process(name: str, shape: Shape) -> float:
    command = [sys.executable, "-W", "ignore", __file__, "--memory-of", name]
    command += ["--shape", json.dumps(dataclasses.asdict(shape))]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])["peak_mb"]


def rows_of(shape: Shape, names: list[str], n_rounds: int) -> list[dict[str, Any]]:
    rows = time_rows(shape, names, n_rounds)
    gc.collect()
    return [{**row, "peak_mb": peak_in_own_process(row["name"], shape)} for row in rows]


def write_markdown(rows: list[dict[str, Any]], quality: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The tables with machine, versions and date, beside the JSON file."""
    about = machine()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"# Training step, {about['date']}",
        "",
        f"{about['processor']}, {about['n_threads']} threads, CUDA: {about['cuda']}, Python {about['python']}; "
        f"{versions}.",
        "",
    ]
    with options.json.with_suffix(".md").open("w") as file, contextlib.redirect_stdout(file):
        print("\n".join(lines))
        print_table(rows)
        print("\nQuality at equal tokens:\n")
        print_table(quality)


def main() -> None:
    if "--memory-of" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--memory-of")
        parser.add_argument("--shape", type=json.loads)
        inner = parser.parse_args()
        measure_memory(inner.memory_of, Shape(**inner.shape))
        return
    options = parse_arguments(__doc__ or "")
    n_rounds = 5 if options.quick else 9
    rows = rows_of(Shape(), installed(list(CONTENDERS)), n_rounds)
    if not options.quick:
        rows += rows_of(LARGE, installed(MAIN), n_rounds)
        for shape in GROWTH:
            rows += rows_of(shape, installed(MAIN), n_rounds=5)
    quality = quality_rows(n_steps=100 if options.quick else 300)
    report(rows, options, quality=quality)
    print()
    print_table(quality)
    if options.json is not None:
        write_markdown(rows, quality, options)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
