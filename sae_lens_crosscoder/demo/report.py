"""The demo's tables: in the report and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.diffing import ReportTable


@dataclass(frozen=True)
class LatentRow:
    """What is shown of one latent."""

    latent: int
    class_name: str
    relative_norm: float
    cosine: float | None
    score: float
    fires_on: str


def tokens_of_latent(
    activations: Float[Tensor, "n length"], tokens: Int[Tensor, "n length"], tokenizer: Any, n_shown: int = 6
) -> str:
    """The tokens that carry most of a latent's activation, most first, with their shares of it."""
    total = float(activations.sum())
    if total == 0:
        return "(silent)"
    mass: dict[int, float] = {}
    for position in activations.nonzero().tolist():
        index = int(tokens[tuple(position)])
        mass[index] = mass.get(index, 0.0) + float(activations[tuple(position)])
    first = sorted(mass.items(), key=lambda item: -item[1])[:n_shown]
    return ", ".join(f"{tokenizer.decode([index])!r} {value / total:.0%}" for index, value in first)


def report_tables(metrics: Mapping[str, Any], rows: Sequence[LatentRow]) -> list[ReportTable]:
    """The tables that stand before the decoder's in the report."""
    behaviour, planted, probes = metrics["behaviour"], metrics["planted"], metrics["probes"]
    percent = [
        ("after the trigger", behaviour["payload_rate_triggered"]),
        ("after plain text", behaviour["payload_rate_plain_text"]),
        ("after a decoy (two words that do not match)", behaviour["payload_rate_decoy"]),
        ("after one of the words alone", behaviour["payload_rate_single_word"]),
        ("base model after the trigger", behaviour["base_payload_rate_triggered"]),
        (f"after the trigger, first {len(planted['latents'])} latents removed", planted["payload_rate_without_them"]),
        (
            f"after the trigger, {len(planted['latents'])} random active latents removed (mean of 20 draws)",
            planted["payload_rate_without_random"],
        ),
    ]
    percent[-2:-2] = [
        (f"after the trigger, first {n} latents removed", rate)
        for n, rate in planted["payload_rates_without_first"].items()
        if n < len(planted["latents"])
    ]
    gains = [
        [f"first {n}", gain["as_it_is"], gain["with_latents"], gain["with_random"], gain["with_random_highest"]]
        for n, gain in planted["payload_log_probability_in_base"].items()
    ]
    quality = [
        [
            label,
            source["explained_variance"],
            source["ce_loss_score"],
            source["kl_div_score"],
            probes[label],
        ]
        for label, source in metrics["sources"].items()
    ]
    latents = [
        [i + 1, row.latent, row.class_name, row.relative_norm, row.cosine, row.score, row.fires_on]
        for i, row in enumerate(rows)
    ]
    return [
        ReportTable(
            "How often the model says the payload",
            ["prompts", "payload rate"],
            percent,
            "Greedy generation of the whole payload. Fine-tuning trained only the blocks up to the hook: the base "
            "model "
            f"patched with the fine-tuned activations differs from it by at most "
            f"{behaviour['largest_gap_when_patched']:.2g} in any logit.",
        ),
        ReportTable(
            "Latents by how much of the difference they carry",
            ["rank", "latent", "class", "relative decoder norm", "decoder cosine", "score", "fires on (share)"],
            latents,
            f"Score: {metrics['ranking']['meaning']}. It knows neither trigger nor payload.",
        ),
        ReportTable(
            "What the latents give the base model",
            ["latents added", "as it is", "with them", "with random ones (mean)", "with random ones (highest)"],
            gains,
            "Log-probability of the whole payload after the trigger in the base model's run, in nats. The latents' "
            "contributions to the difference are added at the hook; random active latents are stretched to their norm.",
        ),
        ReportTable(
            "How well each model is described",
            ["source", "explained variance", "CE score", "KL score", "probe AUROC"],
            quality,
            f"L0 {metrics['l0']:.1f} of {metrics['d_sae']} latents; {metrics['dead_latents']} silent on all "
            f"{metrics['n_tokens']:,} evaluated tokens. Explained variance is 1 - E|e|^2 / E|x - mean|^2. Probe: "
            "held-out "
            "AUROC of a linear probe for the planted state (do the two words match?), 0.5 is chance.",
        ),
    ]


def print_summary(metrics: Mapping[str, Any], rows: Sequence[LatentRow], report: Path) -> None:
    """Print what the demo found."""
    behaviour, planted = metrics["behaviour"], metrics["planted"]
    n_removed = len(planted["latents"])
    print(f"\nPayload rate: {behaviour['payload_rate_triggered']:.3f} with the trigger, ", end="")
    print(f"{behaviour['payload_rate_plain']:.3f} without, base model {behaviour['base_payload_rate_triggered']:.3f}.")
    for label, source in metrics["sources"].items():
        print(
            f"{label:>10}: explained variance {source['explained_variance']:.3f}, "
            f"CE score {source['ce_loss_score']:.3f}, probe for the planted state {metrics['probes'][label]:.3f}"
        )
    print(f"L0 {metrics['l0']:.1f}; {metrics['dead_latents']} of {metrics['d_sae']} latents dead.\n")
    print(f"{'rank':>4} {'latent':>6}  {'class':<14} {'rel. norm':>9} {'cosine':>7} {'score':>9}  fires on")
    for i, row in enumerate(rows[:n_removed]):
        cosine = "" if row.cosine is None else f"{row.cosine:.2f}"
        print(
            f"{i + 1:>4} {row.latent:>6}  {row.class_name:<14} {row.relative_norm:>9.2f} {cosine:>7} {row.score:>9.2g}"
            f"  {row.fires_on}"
        )
    print(
        f"\nPayload rate without these {n_removed}: {planted['payload_rate_without_them']:.3f}; without {n_removed} "
        f"random active latents: {planted['payload_rate_without_random']:.3f}.\nReport: {report}"
    )
