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
    ]
    n_removed = len(planted["latents"])
    removed = [["none", planted["payload_rate_with_all"], None, None, planted["payload_rate_with_all"], None]]
    for n, rates in planted["payload_rates_without_differences"].items():
        random_whole = planted["payload_rate_without_random"] if n == n_removed else None
        whole = planted["payload_rates_without_first"][n]
        removed.append([f"first {n}", *rates.values(), whole, random_whole])
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
            f"Score: {metrics['ranking']['meaning']}. It knows that the prompts hold the trigger and end with the "
            "payload, not what that is.",
        ),
        ReportTable(
            "Without the first latents",
            [
                "latents removed",
                "payload rate",
                "random ones of equal norm (mean)",
                "random ones of equal norm (lowest)",
                "removed as a whole",
                "random ones as a whole (mean)",
            ],
            removed,
            "Payload rate after the trigger, on other prompts than those of the ranking. Removed are the latents' "
            "contributions to the difference, f_j (d_j(finetuned) - d_j(base)), at every position: what the score "
            "attributes to them. Random active latents are stretched to their norm; twenty draws. As a whole, f_j d_j "
            "is removed, and with it what the latents write into both models alike.",
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
    rates = ", ".join(
        f"{part['without_them']:.3f} for the first {n} (random ones of equal norm: {part['without_random']:.3f})"
        for n, part in planted["payload_rates_without_differences"].items()
    )
    print(f"\nPayload rate without the latents' contributions to the difference: {rates}.")
    gains = ", ".join(
        f"{part['with_latents']:.1f} with the first {n} (random: {part['with_random']:.1f})"
        for n, part in planted["payload_log_probability_in_base"].items()
    )
    as_it_is = planted["payload_log_probability_in_base"][n_removed]["as_it_is"]
    print(f"Log-probability of the payload in the base model: {as_it_is:.1f} nats; {gains}.")
    print(
        f"Payload rate without these {n_removed} as a whole: {planted['payload_rate_without_them']:.3f}; without "
        f"{n_removed} random active latents: {planted['payload_rate_without_random']:.3f}.\nReport: {report}"
    )
