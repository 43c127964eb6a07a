"""A model diff from start to end: read, measure, experiment, and write one report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_lens_crosscoder.causal import ModelComparison
from sae_lens_crosscoder.diffing import PairGeometry, ScalingFlags
from sae_lens_crosscoder.diffing.classes import SHARED
from sae_lens_crosscoder.diffing.diff_report import Column, DiffReport, LatentTable
from sae_lens_crosscoder.files import check_writable
from sae_lens_crosscoder.model_diff.columns import activity_columns, causal_columns, decoder_columns, scaling_columns
from sae_lens_crosscoder.model_diff.evidence import evidence
from sae_lens_crosscoder.model_diff.experiments import Experiments, experiment
from sae_lens_crosscoder.model_diff.kept import kept
from sae_lens_crosscoder.model_diff.kl import Divergence, measure_divergence
from sae_lens_crosscoder.model_diff.overview import overview
from sae_lens_crosscoder.model_diff.reading import Readings, read_latents
from sae_lens_crosscoder.model_diff.setup import DiffConfig, DiffSubject

_N_SHOWN = 256
_N_SHOWN_OF_A_KIND = 64


@dataclass(frozen=True)
class ModelDiff:
    """Everything that a model diff has found."""

    geometry: PairGeometry | None
    """What the decoder says; None for an SAE on the difference."""

    readings: Readings
    flags: ScalingFlags | None
    """What latent scaling says of the latents that norms call exclusive; None without classes or scaling."""

    divergence: Divergence
    experiments: Experiments
    report: DiffReport


def diff_models(subject: DiffSubject, out: str | Path, config: DiffConfig | None = None) -> ModelDiff:
    """Compare two models by their crosscoder, and write `report.html`, `latents.parquet` and `latents.csv`.

    What is read and found is saved to `out/.diff-<fingerprint>/` on the way, the long pass in parts and the phases
    after it when they end; called again with the same models, crosscoder, text and effort it goes on from there. The
    folder is removed at the end.

    Args:
        subject: The models, their crosscoder and the text.
        out: Folder to write to.
        config: The effort.

    Raises:
        SourceError: Sources that cannot be compared (see `ModelComparison`).
        SaveError: The folder cannot be written to.
    """
    config = config or DiffConfig()
    check_writable(out)
    comparison = ModelComparison(subject.joint, subject.sae, config.base, config.finetuned, subject.excluded_tokens)
    work = Path(out) / f".diff-{subject.fingerprint(config)}"
    readings = read_latents(subject, config, comparison.finetuned, work / "readings.safetensors")
    divergence = kept(work / "divergence.pt", lambda: measure_divergence(subject, comparison, config))
    geometry = _geometry(subject, comparison, config)
    fires = readings.statistics.n_active > 0
    flags = _flags(geometry, readings, comparison, config)
    order = divergence.attribution.argsort(descending=True)
    sets = latent_sets(order, fires, geometry)
    shared = [] if geometry is None else _most_frequent(geometry, readings, config.n_equivalence)
    first = order[: config.n_exact].tolist()
    experiments = kept(work / "experiments.pt", lambda: experiment(subject, comparison, config, sets, first, shared))
    columns = [] if geometry is None else list(decoder_columns(subject, geometry))
    columns += scaling_columns(readings, comparison.base, flags)
    columns += [*activity_columns(readings.statistics), *causal_columns(divergence, experiments)]
    thresholds: dict[str, str | float] = {"scaling": config.scaling_thresholds.describe()}
    if geometry is not None:
        thresholds["classes"] = geometry.thresholds.describe()
    labels = [comparison.base, comparison.finetuned]
    table = LatentTable([_on_cpu(column) for column in columns], labels, thresholds)
    shown = shown_latents(order, geometry, readings)
    report = DiffReport(
        table=table,
        overview=overview(comparison, geometry, readings, flags, divergence, experiments),
        evidence=evidence(subject, comparison, shown, readings.contexts, divergence),
        title=f"What changed from {comparison.base} to {comparison.finetuned}",
        metadata=_metadata(subject, readings, divergence, experiments),
    )
    report.save(out)
    shutil.rmtree(work, ignore_errors=True)
    return ModelDiff(geometry, readings, flags, divergence, experiments, report)


def latent_sets(
    order: Int[Tensor, " d_sae"], fires: Bool[Tensor, " d_sae"], geometry: PairGeometry | None
) -> dict[str, list[int]]:
    """The sets of latents that are patched: the first by KL attribution, exclusive ones, and random active ones."""
    first = order[:10].tolist()
    others = fires.cpu().clone()
    others[first] = False
    candidates = others.nonzero()[:, 0]
    generator = torch.Generator().manual_seed(0)
    drawn = candidates[torch.randperm(len(candidates), generator=generator)[: len(first)]]
    sets = {"first 3 by KL attribution": first[:3], "first 10 by KL attribution": first}
    sets[f"{len(drawn)} random active ones"] = sorted(drawn.tolist())
    if geometry is not None:
        for label in geometry.labels:
            members = [j for j, name in enumerate(geometry.classes) if name == f"{label}-only"]
            if members:
                sets[f"all {len(members)} {label}-only"] = members
    return sets


def shown_latents(order: Int[Tensor, " d_sae"], geometry: PairGeometry | None, readings: Readings) -> list[int]:
    """Latents that have a page of their own: the first by KL attribution of either sign, then the most exclusive."""
    chosen = dict.fromkeys([*order[:_N_SHOWN_OF_A_KIND].tolist(), *order[-_N_SHOWN_OF_A_KIND // 2 :].tolist()])
    if geometry is not None:
        distance = (geometry.relative_norms.cpu() - 0.5).abs().nan_to_num(-1)
        chosen |= dict.fromkeys(distance.argsort(descending=True)[:_N_SHOWN_OF_A_KIND].tolist())
    chosen |= dict.fromkeys(readings.statistics.n_active.cpu().argsort(descending=True)[:_N_SHOWN].tolist())
    return list(chosen)[:_N_SHOWN]


def _geometry(subject: DiffSubject, comparison: ModelComparison, config: DiffConfig) -> PairGeometry | None:
    sources, labels = subject.joint.sources, [comparison.base, comparison.finetuned]
    if sources.combine == "difference":
        return None
    return PairGeometry.from_sources(subject.sae.W_dec, sources, labels, config.class_thresholds, subject.dead)


def _flags(
    geometry: PairGeometry | None, readings: Readings, comparison: ModelComparison, config: DiffConfig
) -> ScalingFlags | None:
    if geometry is None or readings.scaling is None:
        return None
    exclusive = torch.tensor([name == f"{comparison.finetuned}-only" for name in geometry.classes])
    return readings.scaling.flags(exclusive, config.scaling_thresholds, comparison.base)


def _most_frequent(geometry: PairGeometry, readings: Readings, n: int) -> Sequence[int]:
    shared = torch.tensor([name == SHARED for name in geometry.classes])
    counts = readings.statistics.n_active.cpu() * shared
    order = counts.argsort(descending=True)[:n]
    return order[counts[order] > 0].tolist()


def _on_cpu(column: Column) -> Column:
    return replace(column, values=column.values.cpu()) if isinstance(column.values, Tensor) else column


def _metadata(
    subject: DiffSubject, readings: Readings, divergence: Divergence, experiments: Experiments
) -> dict[str, str | int | float]:
    described = {source.label: f"{source.model_name} at {source.hook_name}" for source in subject.joint.sources}
    return {
        **described,
        "crosscoder": f"{subject.sae.cfg.architecture()}, {len(subject.sae.W_dec):,} latents",
        "data sets": ", ".join(subject.sequences.dataset_names),
        "tokens read": readings.statistics.n_tokens,
        "tokens of the KL attribution": divergence.n_tokens,
        "tokens of the causal tests": experiments.n_tokens,
    }
