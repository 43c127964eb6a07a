"""What a model diff found, in words and key figures."""

from __future__ import annotations

import math

from sae_lens_crosscoder.causal import ModelComparison
from sae_lens_crosscoder.causal.patching import ERROR, EVERYTHING, NOTHING, RECONSTRUCTION, PatchEffect
from sae_lens_crosscoder.diffing import PairGeometry, ReportTable, ScalingFlags
from sae_lens_crosscoder.diffing.diff_report import KeyFigure, Overview
from sae_lens_crosscoder.model_diff.experiments import Experiments
from sae_lens_crosscoder.model_diff.kl import Divergence
from sae_lens_crosscoder.model_diff.reading import Readings


def overview(
    comparison: ModelComparison,
    geometry: PairGeometry | None,
    readings: Readings,
    flags: ScalingFlags | None,
    divergence: Divergence,
    experiments: Experiments,
) -> Overview:
    """The first page: how far the models are apart, which latents carry it, and whether exclusive ones are real."""
    base, finetuned = comparison.base, comparison.finetuned
    statistics = readings.statistics
    n_latents, n_silent = len(statistics.n_active), int((statistics.n_active == 0).sum())
    groups = "; ".join(f"{name} {kl:.4f}" for name, kl in divergence.kl.items() if name != "all")
    paragraphs = [
        f"The predictions of {finetuned} differ from those of {base} by {divergence.kl['all']:.4f} nats a token "
        f"(KL({finetuned} || {base}), mean over {divergence.n_tokens:,} tokens{': ' + groups if groups else ''}).",
        f"Of {n_latents:,} latents {n_silent:,} did not fire on the {statistics.n_tokens:,} tokens read.",
        _patches(base, finetuned, experiments),
    ]
    if flags is not None and geometry is not None:
        counts = flags.counts
        n_exclusive = geometry.counts[f"{finetuned}-only"]
        paragraphs.append(
            f"Decoder norms call no latent {finetuned}-only."
            if n_exclusive == 0
            else f"Decoder norms call {n_exclusive:,} latents {finetuned}-only. Latent scaling confirms "
            f"{counts['confirmed']:,} of them; {counts['complete_shrinkage']:,} are also in {base}'s error (complete "
            f"shrinkage), {counts['latent_decoupling']:,} are written into {base} by other latents (latent "
            f"decoupling), {counts['unreliable']:,} cannot be told."
        )
    if readings.scaling is None:
        paragraphs.append("The sources differ in width, so that latent scaling was left out.")
    exact = experiments.attribution
    if not math.isnan(exact.rank_correlation):
        paragraphs.append(
            f"Of the {len(exact.latents)} latents that carry most of the KL to first order, exact removal gives the "
            f"same order with rank correlation {exact.rank_correlation:.2f}."
        )
    figures = [
        KeyFigure("KL per token", f"{divergence.kl['all']:.4f}", f"nats, KL({finetuned} || {base})"),
        *(
            KeyFigure(f"KL gap closed by {name}", _percent(effects["all"].gap_closed, 1), f"put into {base}'s run")
            for name, effects in experiments.forward.items()
            if name in (RECONSTRUCTION, "first 10 by KL attribution") and "all" in effects
        ),
    ]
    scatter = None
    if readings.scaling is not None and "error" in readings.scaling.beta[base]:
        scatter = ("nu_error", "nu_reconstruction")
    histograms = ["frequency", "kl_attribution"]
    if geometry is not None:
        histograms = ["relative_norm", *(["cosine"] if geometry.cosines is not None else []), *histograms]
    return Overview(paragraphs, figures, histograms, [patch_table(base, finetuned, experiments)], scatter)


def patch_table(base: str, finetuned: str, experiments: Experiments) -> ReportTable:
    """How much of the KL gap every patch closes, in both directions and on every group of tokens."""
    groups = list(experiments.forward[NOTHING])
    rows = [
        [
            name,
            *(
                _percent(effects[name][group].gap_closed, 1)
                for group in groups
                for effects in (experiments.forward, experiments.reverse)
            ),
        ]
        for name in (EVERYTHING, RECONSTRUCTION, ERROR, *experiments.sets)
    ]
    gaps = ", ".join(
        f"{effects[NOTHING][group].kl:.4f} {way} on {group} ({effects[NOTHING][group].n_tokens:,} tokens)"
        for group in groups
        for way, effects in (("put in", experiments.forward), ("taken out", experiments.reverse))
    )
    return ReportTable(
        "Causal tests: share of the KL gap that is closed",
        ["what is patched", *(f"{group}: {way}" for group in groups for way in ("put in", "taken out"))],
        rows,
        f"Put in: contributions to the difference are added to {base}'s run, which {finetuned} continues; 100 % would "
        f"be {finetuned} itself. Taken out: they are taken from {finetuned}'s run, which {base} continues; 100 % would "
        f"be {base} itself. The {EVERYTHING} and the {RECONSTRUCTION} are the bounds; the {ERROR} is what the "
        f"crosscoder leaves out. KL without a patch, in nats: {gaps}.",
    )


def _patches(base: str, finetuned: str, experiments: Experiments) -> str:
    def closed(effects: dict[str, PatchEffect]) -> str:
        return _percent(effects["all"].gap_closed, 0)

    parts = [
        f"{name} {closed(effects)} (taken out of {finetuned} again: {closed(experiments.reverse[name])})"
        for name, effects in experiments.forward.items()
        if name in (RECONSTRUCTION, *experiments.sets) and "all" in effects
    ]
    return (
        f"Put into {base}'s run, which {finetuned} then continues, these close of the KL gap (the {EVERYTHING} closes "
        f"100 %): {'; '.join(parts)}."
    )


def _percent(share: float, n_digits: int) -> str:
    if math.isnan(share):
        return "–"
    return f"{round(100 * share, n_digits) + 0:.{n_digits}f} %"  # + 0, so that it never says "-0 %"
