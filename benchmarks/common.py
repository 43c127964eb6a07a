"""What the benchmarks share: the command line, the machine they ran on, and their tables."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sae_lens_crosscoder import __version__


def parser(description: str, **switches: str) -> argparse.ArgumentParser:
    """`--json FILE` writes the results, `--quick` takes fewer rounds; further switches by name, with their help."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", type=Path, help="file to write the results to")
    for name, meaning in {"quick": "fewer rounds", **switches}.items():
        made.add_argument(f"--{name}", action="store_true", help=meaning)
    return made


def parse_arguments(description: str, **switches: str) -> argparse.Namespace:
    """What was given to `parser`."""
    return parser(description, **switches).parse_args()


def machine() -> dict[str, Any]:
    """Where and with what a benchmark ran."""
    names = ("torch", "sae-lens", "transformer-lens", "transformers", "datasets")
    return {
        "date": date.today().isoformat(),
        "processor": platform.machine(),
        "n_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {**{name: version(name) for name in names}, "sae-lens-crosscoder": __version__},
    }


def median_ratio(values: Sequence[float], references: Sequence[float]) -> float:
    """Median of the ratios of values that were measured side by side."""
    return statistics.median(value / reference for value, reference in zip(values, references, strict=True))


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def status_mb(field: str) -> float:
    """A field of this process's status (Linux): "VmRSS" is the memory it has, "VmHWM" the most it had."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def peak_above(start_mb: float, run: Callable[[], None]) -> float:
    """How far the memory of this process rises above `start_mb` while it runs."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    run()
    return status_mb("VmHWM") - start_mb


def report(rows: Sequence[dict[str, Any]], options: argparse.Namespace, **extra: Any) -> None:
    """Print the rows as a table and write them, with the machine, as JSON if asked to."""
    print_table(rows)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"machine": machine(), **extra, "rows": list(rows)}, indent=2) + "\n")


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows of the same columns as a Markdown table."""
    columns = list(rows[0])
    cells = [columns, *([_text(row[c]) for c in columns] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for i, row in enumerate(cells):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if i == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
