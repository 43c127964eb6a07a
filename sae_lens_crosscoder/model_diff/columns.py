"""The table of a model diff: what was found, as one described column a quantity."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sae_lens_crosscoder.activations import TokenRole
from sae_lens_crosscoder.diffing import LatentStatisticsResult, PairGeometry, ScalingFlags
from sae_lens_crosscoder.diffing.diff_report import Column
from sae_lens_crosscoder.diffing.diff_report.decoder_columns import file_name, norm_columns, pair_columns
from sae_lens_crosscoder.model_diff.experiments import Experiments
from sae_lens_crosscoder.model_diff.kl import Divergence
from sae_lens_crosscoder.model_diff.reading import Readings
from sae_lens_crosscoder.model_diff.setup import DiffSubject

SCALING, ACTIVITY, DATA, ROLES, CAUSAL = (
    "Latent scaling",
    "Activity",
    "By data set",
    "By token role",
    "Causal",
)
"""Headings under which columns stand."""


def decoder_columns(subject: DiffSubject, geometry: PairGeometry) -> Iterator[Column]:
    """Class, relative norm, cosine and per-source norms."""
    yield from pair_columns(geometry)
    yield from norm_columns(subject.sae.W_dec, subject.joint.sources)


def scaling_columns(readings: Readings, base: str, flags: ScalingFlags | None) -> Iterator[Column]:
    """The ratios nu, and what they say of latents that norms call exclusive."""
    scaling = readings.scaling
    if scaling is None:
        return
    what = {
        "error": f"How much of the latent {base}'s error holds, over the same of {scaling.probe}: 0 none, 1 as much.",
        "reconstruction": f"How much of the latent other latents write into {base}, over {scaling.probe}: 0 none.",
        "activation": f"How much of the latent {base}'s activation holds, over {scaling.probe}.",
    }
    for target, meaning in what.items():
        if target in scaling.beta[base]:
            nu = scaling.nu(target, base)
            yield Column(f"nu_{target}", nu, f"ν {target}", meaning, SCALING, shown=target != "activation")
    if flags is not None:
        meaning = f"What latent scaling says of a latent that is {scaling.probe}-only by norm."
        yield Column("scaling_flag", _flag_names(flags), "artefact?", meaning, SCALING)
        ranks = scaling.rank_sum(thresholds=flags.thresholds, source=base)
        meaning = "Rank by ν error plus rank by ν reconstruction: lowest is the most exclusive."
        yield Column("rank_sum", ranks, "rank sum", meaning, SCALING, shown=False)


def _flag_names(flags: ScalingFlags) -> list[str]:
    names: list[str] = []
    for shrunk, decoupled, confirmed, unreliable in zip(
        flags.complete_shrinkage.tolist(),
        flags.latent_decoupling.tolist(),
        flags.confirmed.tolist(),
        flags.unreliable.tolist(),
        strict=True,
    ):
        artefacts = [name for name, is_so in (("shrinkage", shrunk), ("decoupling", decoupled)) if is_so]
        names.append("confirmed" if confirmed else "unreliable" if unreliable else " and ".join(artefacts))
    return names


def activity_columns(statistics: LatentStatisticsResult) -> Iterator[Column]:
    """How often and how strongly latents fire, overall, by data set and by token role."""
    yield Column(
        "frequency",
        statistics.frequency,
        "frequency",
        "Share of tokens on which the latent fires.",
        ACTIVITY,
        "percent",
        "log",
    )
    yield Column("max", statistics.max, "largest", "Largest activation.", ACTIVITY)
    meaning = "Mean activation over the tokens on which it fires."
    yield Column("mean_active", statistics.mean_active, "mean", meaning, ACTIVITY, shown=False)
    for q in (0.5, 0.9, 0.99):
        meaning = f"Activation that a share of {q} of its activations does not exceed (within 2.2 %)."
        yield Column(f"q{round(100 * q)}", statistics.quantile(q), f"{q:.0%} quantile", meaning, ACTIVITY, shown=False)
    datasets = statistics.groups["dataset"]
    if len(datasets.names) > 1:
        for i, name in enumerate(datasets.names):
            meaning = f"Mean activation over all tokens of {name}, zeros included."
            column = f"dataset_{i}_mean_{file_name(name)}"
            yield Column(column, datasets.mean[:, i], f"mean on {name}", meaning, DATA, shown=False)
    roles = statistics.groups["role"]
    present = [i for i, n in enumerate(roles.n_tokens.tolist()) if n > 0]
    if {TokenRole.ASSISTANT_START, TokenRole.USER, TokenRole.ASSISTANT} & set(present):
        for i in present:
            name = roles.names[i].replace("_", " ")
            meaning = f"Share of the latent's summed activation that falls on {name} tokens."
            shown = i == TokenRole.TEMPLATE
            title = f"on {name}"
            yield Column(
                f"share_{roles.names[i]}", roles.mass_share[:, i], title, meaning, ROLES, "percent", shown=shown
            )
            meaning = f"Mean activation over all {name} tokens, zeros included."
            yield Column(f"mean_{roles.names[i]}", roles.mean[:, i], f"mean on {name}", meaning, ROLES, shown=False)


def causal_columns(divergence: Divergence, experiments: Experiments) -> Iterator[Column]:
    """KL attribution, exact where it was measured, and ablation equivalence where it was."""
    meaning = (
        "First-order KL attribution: mean over tokens of activation times <difference of decoder rows, gradient of "
        "KL(finetuned || base)>, the gradient averaged along the path between the models' activations; in nats."
    )
    yield Column("kl_attribution", divergence.attribution, "KL attribution", meaning, CAUSAL)
    d_sae = len(divergence.attribution)
    exact = _scattered(d_sae, experiments.attribution.latents, experiments.attribution.exact)
    meaning = "Mean fall of KL(finetuned || base) when the latent's contribution is removed and the model rerun."
    yield Column("kl_attribution_exact", exact, "exact", meaning, CAUSAL, shown=False)
    if experiments.equivalence.isfinite().any():
        meaning = "Correlation over texts of what removing the latent does to either model: 1 is the same use."
        yield Column("ablation_equivalence", experiments.equivalence, "equivalence", meaning, CAUSAL, shown=False)


def _scattered(d_sae: int, latents: Tensor, values: Tensor) -> Tensor:
    return torch.full((d_sae,), torch.nan, dtype=torch.float64).scatter(0, latents, values)
