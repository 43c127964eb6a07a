"""Which architecture finds the features that one model has for itself, and which invents them.

Every architecture is trained on planted pairs (`planted_pair.py`: most features shared, with unequal norms; a few
exclusive), with the same steps, batches, learning rate and width, at the planted L0, and the SAE that is saved is
judged on fresh tokens (`planted_metrics.py`). One row an architecture and seed:

- `l0`: active latents a token. (Batch)TopK is given it as k; with a penalty, its weight is moved until L0 is there.
- `recall_exclusive`: share of the planted exclusive features that a live latent classified as exclusive to that model
  matches (decoder cosine in that model above 0.8, correlation of the activations above 0.5). Higher is better.
- `false_exclusive_rate`: share of the live latents classified as exclusive that match no planted exclusive feature of
  that model; 0 if none is classified so. Lower is better.
- `explained_variance`: 1 - E|x - x_hat|^2 / E|x - mean x|^2 over both models, each scaled to the same mean norm.

Classes are by relative decoder norm with the default thresholds. `details` in the JSON file, in the order of the rows,
has counts of latents, what became of shared features, and how well latent scaling tells the real exclusive latents from
the false ones (`auroc_by_nu`; `planted_scaling.py`). That an L1 penalty invents exclusive latents and BatchTopK mostly
does not is the finding of Minder et al. (2025), "Overcoming Sparsity Artifacts in Crosscoders".
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import statistics
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

import torch
from common import parse_arguments, print_table, report
from planted_scaling import nu_separation
from planted_training import Entry, Plan, planted_run

from sae_lens_crosscoder import (
    BatchTopKTrainingCrosscoderConfig,
    GatedTrainingCrosscoderConfig,
    JumpReLUTrainingCrosscoderConfig,
    MatryoshkaBatchTopKTrainingCrosscoderConfig,
    StandardTrainingCrosscoderConfig,
    TopKTrainingCrosscoderConfig,
)

ENTRIES = (
    Entry("standard (L1)", StandardTrainingCrosscoderConfig, {"l1_coefficient": 3.0}, "l1_coefficient"),
    Entry("gated", GatedTrainingCrosscoderConfig, {"l1_coefficient": 2.0}, "l1_coefficient"),
    Entry("jumprelu, tanh", JumpReLUTrainingCrosscoderConfig, {"l0_coefficient": 0.2}, "l0_coefficient"),
    Entry(
        "jumprelu, step",
        JumpReLUTrainingCrosscoderConfig,
        {"l0_coefficient": 0.4, "sparsity_loss": "step"},
        "l0_coefficient",
    ),
    Entry("topk", TopKTrainingCrosscoderConfig, {}, "k"),
    Entry("batchtopk", BatchTopKTrainingCrosscoderConfig, {}, "k"),
    Entry("matryoshka batchtopk", MatryoshkaBatchTopKTrainingCrosscoderConfig, {}, "k"),
    Entry(
        "standard, half of the latents shared",
        StandardTrainingCrosscoderConfig,
        {"l1_coefficient": 3.0, "n_shared_latents": 128},
        "l1_coefficient",
    ),
    Entry(
        "batchtopk, 25 exclusive latents a model",
        BatchTopKTrainingCrosscoderConfig,
        {"n_exclusive_latents": [25, 25]},
        "k",
    ),
)
METRICS = ("l0", "recall_exclusive", "false_exclusive_rate", "explained_variance")
N_PROCESSES = 2


def measure(entry: Entry, seed: int, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    """The row of one architecture and seed, and what stands behind it."""
    run = planted_run(entry, seed, plan)
    judgement = run.judgement()
    row = {"architecture": entry.name, "seed": seed, **{name: getattr(judgement, name) for name in METRICS}}
    return row, {"coefficient": run.coefficient, **judgement.details, "auroc_by_nu": nu_separation(run)}


def means_over_seeds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and, of several seeds, standard deviation of every metric by architecture."""
    table: list[dict[str, Any]] = []
    for name, group in itertools.groupby(rows, key=lambda row: row["architecture"]):
        of_name = list(group)
        cells = {metric: _mean_and_deviation([row[metric] for row in of_name]) for metric in METRICS}
        table.append({"architecture": name, **cells})
    return table


def separations(rows: list[dict[str, Any]], details: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How well each nu tells real from false exclusive latents, by architecture, over the seeds that have both."""
    table: list[dict[str, Any]] = []
    both = zip(rows, details, strict=True)
    for name, group in itertools.groupby(both, key=lambda pair: pair[0]["architecture"]):
        found = [detail["auroc_by_nu"] for _, detail in group]
        kept = [aurocs for aurocs in found if aurocs["nu_error"] is not None]
        cells = {nu: _mean_and_deviation([a[nu] for a in kept]) if kept else "no false ones" for nu in found[0]}
        table.append({"architecture": name, "seeds": len(kept), **cells})
    return table


def _mean_and_deviation(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _quiet() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")


def main() -> None:
    options = parse_arguments(__doc__ or "")
    os.environ["TQDM_DISABLE"] = "1"  # read by the workers when they start
    seeds, plan = (range(1), Plan(n_steps=1000)) if options.quick else (range(5), Plan())
    entries, of_seeds = zip(*((entry, seed) for seed in seeds for entry in ENTRIES), strict=True)
    results: list[tuple[dict[str, Any], dict[str, Any]]] = []
    with ProcessPoolExecutor(N_PROCESSES, multiprocessing.get_context("spawn"), initializer=_quiet) as pool:
        for result in pool.map(measure, entries, of_seeds, itertools.repeat(plan)):
            print(*(f"{name}={value}" for part in result for name, value in part.items()), file=sys.stderr)
            results.append(result)
    names = [entry.name for entry in ENTRIES]
    results.sort(key=lambda result: names.index(result[0]["architecture"]))
    rows, details = [row for row, _ in results], [detail for _, detail in results]
    report(rows, options, n_processes=N_PROCESSES, plan=asdict(plan), details=details)
    print_table(means_over_seeds(rows))
    print_table(separations(rows, details))


if __name__ == "__main__":
    _quiet()
    main()
