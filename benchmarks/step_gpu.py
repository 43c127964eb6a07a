"""A training step on one CUDA device, under autocast in bfloat16 or without: `make bench-gpu`.

Every contender makes one step in every round, in random order, and is waited for. `seconds_median`, `speedup` and
`peak_mb` (the device's memory above data, weights and moments) are those of `step.py`. `matmul_floor` is the encoder's
product in bfloat16, measured in the same rounds, as a share of the step, and `memory_floor` the least that any step
with Adam moves (weights, moments and gradients, read and written once, in float32) at the rate of a copy that is
measured beside it. `host_waits` is the number of times a step makes the host wait for the device, from a trace of the
profiler: 0 for a step that reads nothing back.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import statistics
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import machine, median_ratio, print_table, report, seconds
from step_contenders import CONTENDERS, OURS, REFERENCE, Contender, Shape, batches
from torch.profiler import ProfilerActivity, profile, record_function

SHAPE = Shape(batch=4096, width=2304, d_sae=65_536, k=100, device="cuda", autocast=True)
NAMES = [REFERENCE, "SAELens TopK", OURS, "topk_crosscoder", "matryoshka_batchtopk_crosscoder"]
N_WARM_UP = 4
N_TRACED = 5
COPY_BYTES = 2**30
WAITS = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"}
_STEP = "training step"


def gpu_rows(shape: Shape, names: list[str], n_rounds: int, trace_folder: Path | None = None) -> list[dict[str, Any]]:
    """A row a contender; the device is that of the shape."""
    data = [x.to(shape.device) for x in batches(shape)]
    contenders = {name: CONTENDERS[name](shape) for name in names}
    for name, x in itertools.product(names, data[:N_WARM_UP]):
        contenders[name].step(x)
    wall = _rounds(shape, contenders, data, n_rounds)
    rows: list[dict[str, Any]] = []
    for name, contender in contenders.items():
        trace = None if trace_folder is None else trace_folder / f"{name.replace(' ', '_')}.json"
        rows.append(
            {
                "name": name,
                "shape": str(shape),
                "seconds_median": statistics.median(wall[name]),
                "speedup": median_ratio(wall[REFERENCE], wall[name]) if REFERENCE in wall else None,
                "peak_mb": _peak_mb(contender, data[0]),
                "matmul_floor": median_ratio(wall["matmul"], wall[name]),
                "memory_floor": _copies(contender) * median_ratio(wall["copy"], wall[name]),
                "host_waits": host_waits(contender, data, trace),
            }
        )
    return rows


def _rounds(
    shape: Shape, contenders: dict[str, Contender], data: list[torch.Tensor], n_rounds: int
) -> dict[str, list[float]]:
    rounded = data[0].bfloat16()
    weights = torch.randn(shape.d_sae, shape.d_in, device=shape.device, dtype=torch.bfloat16)
    copied = torch.empty(COPY_BYTES, dtype=torch.uint8, device=shape.device)
    works: dict[str, Callable[[torch.Tensor], Any]] = {name: made.step for name, made in contenders.items()}
    works["matmul"] = lambda _: rounded @ weights.T
    works["copy"] = lambda _: copied.clone()
    for work in works.values():
        work(data[0])
    wall: dict[str, list[float]] = {name: [] for name in works}
    for _, x in zip(range(n_rounds), itertools.cycle(data), strict=False):
        for name in random.sample(list(works), len(works)):
            _wait(shape.device)
            wall[name].append(seconds(lambda x=x, name=name: (works[name](x), _wait(shape.device))))
    return wall


def _copies(contender: Contender) -> float:
    """How many copies of COPY_BYTES move what Adam's step moves: it reads weight, gradient and both moments, and writes
    weight and both moments, and the gradient was written before; a copy reads and writes."""
    n_bytes = 4 * sum(weights.numel() for weights in contender.model.parameters())
    return 8 * n_bytes / (2 * COPY_BYTES)


def _peak_mb(contender: Contender, x: torch.Tensor) -> float | None:
    if not x.is_cuda:
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    contender.step(x)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def host_waits(contender: Contender, data: list[torch.Tensor], trace_file: Path | None = None) -> float:
    """How often a step waits for the device on average, and the trace, for chrome://tracing, if asked for."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * data[0].is_cuda
    with profile(activities=activities, acc_events=True) as trace:
        for _, x in zip(range(N_TRACED), itertools.cycle(data), strict=False):
            with record_function(_STEP):
                contender.step(x)
    if trace_file is not None:
        trace_file.parent.mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(trace_file))
    events = list(trace.events() or [])
    steps = [event.time_range for event in events if event.name == _STEP]
    waits = [event.time_range.start for event in events if event.name in WAITS]
    return sum(any(step.start <= wait <= step.end for step in steps) for wait in waits) / N_TRACED


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def measure(options: argparse.Namespace) -> None:
    """Measure, print and write the rows.

    Raises:
        SystemExit: With status 2, there is no CUDA device.
    """
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} finds no CUDA device, so nothing was measured.")
        raise SystemExit(2)
    n_rounds = 5 if options.quick else 15
    traces = None if options.json is None else options.json.with_suffix("")
    rows = gpu_rows(SHAPE, NAMES, n_rounds, traces)
    if not options.quick:
        exact = [replace(SHAPE, autocast=False), replace(SHAPE, k=32), replace(SHAPE, d_sae=16_384)]
        for shape in exact:
            torch.cuda.empty_cache()
            rows += gpu_rows(shape, [REFERENCE, OURS], n_rounds)
    report(rows, options)
    if options.json is not None:
        about = machine()
        with options.json.with_suffix(".md").open("w") as file, contextlib.redirect_stdout(file):
            print(f"# Training step on {about['cuda']}, {about['date']}\n\n{about['versions']}\n")
            print_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file to write the results to; traces go into a folder beside it")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, one shape")
    measure(parser.parse_args())


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
