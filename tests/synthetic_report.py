"""A diff report of any size made of random numbers, and one of strings that try to break out of the page."""

from __future__ import annotations

import torch
from torch import Tensor

from sae_lens_crosscoder.diffing import ClassThresholds, ReportTable, classify_latents
from sae_lens_crosscoder.diffing.diff_report import (
    Column,
    Contexts,
    DiffReport,
    Evidence,
    KeyFigure,
    KLDocument,
    LatentTable,
    LogitLens,
    Overview,
)

LABELS = ("base", "chat")
HOSTILE = [
    "</script><script>document.title='PWNED'</script>",
    "<img src=x onerror=\"document.title='PWNED'\">",
    "<!--<script>",
    "\u202egnp",
    "\ud800",
    "\x00\x1b",
    "\n",
    "\t",
    " ",
    "",
    "$&\\u003c",
    "🙂 日",
]
TEXT = "the quick brown fox jumps over a lazy dog while many models answer questions and users write text"
WORDS = TEXT.split()


def make_report(d_sae: int = 400, n_with_contexts: int = 40, n_documents: int = 6, n_tokens: int = 60) -> DiffReport:
    """Random latents with planted ends: latent 0 has the largest ν error, latent 1 the smallest, latent 2 none."""
    generator = torch.Generator().manual_seed(0)
    tokens = dict(enumerate([*HOSTILE, *(f" {word}" for word in WORDS), *(f" word{i}" for i in range(4000))]))
    evidence = Evidence(
        tokens=tokens,
        contexts=_contexts(n_with_contexts, len(tokens), generator),
        logit_lens={label: _lens(n_with_contexts, len(tokens), generator) for label in LABELS},
        kl_documents=[_document(i, n_tokens, n_with_contexts, len(tokens), generator) for i in range(n_documents)],
    )
    overview = Overview(
        paragraphs=[
            "Fine-tuning added a small set of latents: 3.1 % of them write almost only into the chat model, and after "
            "latent scaling 212 of those remain.",
            "They fire on template tokens and on refusals, and carry 61 % of the KL on the first ten answer tokens.",
        ],
        key_figures=[
            KeyFigure("chat-only after scaling", 212, "Δ alone names 508"),
            KeyFigure("explained variance", 0.8312, "both models, per token"),
            KeyFigure("KL closed by 100 latents", "61 %", "first ten answer tokens"),
        ],
        tables=[
            ReportTable(
                "Causal tests",
                ["what is patched", "put in", "n", HOSTILE[1]],
                [["full difference", "100.0%", 3, 0.25], [HOSTILE[0], None, float("nan"), True]],
                "What it means.",
            )
        ],
        histograms=["relative_decoder_norm", "nu_error", "frequency_chat", "kl_attribution"],
        scatter=("nu_reconstruction", "nu_error"),
    )
    return DiffReport(
        table=make_table(d_sae),
        overview=overview,
        evidence=evidence,
        metadata={"base": "org/base-1b", "chat": "org/chat-1b", "layer": 12, "tokens": 10_000_000, "seed": 0},
    )


def make_table(d_sae: int) -> LatentTable:
    """Thirty columns of all kinds."""
    generator = torch.Generator().manual_seed(1)
    norms = torch.rand(d_sae, generator=generator).pow(0.4)
    thresholds = ClassThresholds()
    dead = torch.rand(d_sae, generator=generator) < 0.05
    nu_error = norms + 0.2 * torch.randn(d_sae, generator=generator)
    nu_error[:3] = torch.tensor([9.5, -7.5, torch.nan])
    nu_reconstruction = nu_error + 0.3 * torch.randn(d_sae, generator=generator)
    frequency = 10 ** (-5 * torch.rand(d_sae, generator=generator))
    geometry = "Decoder geometry"
    scaling = "Latent scaling"
    firing = "Firing"
    columns = [
        Column(
            "class",
            classify_latents(norms, thresholds, LABELS, dead),
            "class",
            "Class by relative decoder norm.",
            geometry,
        ),
        Column(
            "relative_decoder_norm",
            norms,
            "relative norm",
            "Share of the chat model in the summed decoder norm; 1 is only the chat model.",
            geometry,
        ),
        Column(
            "decoder_cosine",
            torch.rand(d_sae, generator=generator) * 2 - 1,
            "cosine",
            "Cosine of the two decoder rows.",
            geometry,
        ),
        Column(
            "nu_error",
            nu_error,
            "ν error",
            "How present the latent is in the base model's error; near 0 is absent.",
            scaling,
        ),
        Column(
            "nu_reconstruction",
            nu_reconstruction,
            "ν reconstruction",
            "How much of it the base model's reconstruction holds already.",
            scaling,
        ),
        Column(
            "complete_shrinkage", nu_error > 0.9, "shrinkage", "Only shrunk in the base model, not absent.", scaling
        ),
        Column(
            "frequency_chat",
            frequency,
            "fires on chat",
            "Share of the chat tokens on which it fires.",
            firing,
            format="percent",
            scale="log",
        ),
        Column(
            "n_firings",
            (frequency.double() * 1e13).long(),
            "firings",
            "Number of tokens on which it fires.",
            firing,
            scale="log",
        ),
        Column(
            "template_share",
            torch.rand(d_sae, generator=generator),
            "template share",
            "Share of its firings on template tokens.",
            firing,
            format="percent",
        ),
        Column(
            "kl_attribution",
            torch.randn(d_sae, generator=generator, dtype=torch.float64) * 1e-3,
            "KL attribution",
            "Mean KL that it carries, in nats a token.",
            "Causal",
        ),
    ]
    columns += [
        Column(
            f"quantile_{i}",
            torch.rand(d_sae, generator=generator) * i,
            f"quantile {i}",
            "Activation that so many firings exceed.",
            "Activations",
            shown=False,
        )
        for i in range(20)
    ]
    return LatentTable(columns, LABELS, {"classes": thresholds.describe(), "shrinkage above": 0.9, "max Δ": 0.1})


def _contexts(n_latents: int, n_strings: int, generator: torch.Generator, each: int = 10, width: int = 48) -> Contexts:
    latents = torch.arange(n_latents).repeat_interleave(each)
    token_ids = _ids((len(latents), width), n_strings, generator)
    token_ids[:, : len(HOSTILE)] = torch.arange(len(HOSTILE))
    token_ids[::7, -5:] = -1
    sparse = torch.rand(len(latents), width, generator=generator) < 0.12
    activations = torch.rand(len(latents), width, generator=generator) * 8 * sparse
    activations[:, 20] = 9 - torch.arange(len(latents)) % each * 0.5
    return Contexts(latents, token_ids, activations, ["chat" if i % 2 else "fineweb" for i in range(len(latents))])


def _lens(n_latents: int, n_strings: int, generator: torch.Generator, k: int = 10) -> LogitLens:
    top, bottom = (_ids((n_latents, k), n_strings, generator) for _ in range(2))
    values = torch.rand(n_latents, k, generator=generator).sort(dim=1, descending=True).values
    return LogitLens(torch.arange(n_latents), top, values, bottom, -values)


def _document(number: int, n_tokens: int, n_latents: int, n_strings: int, generator: torch.Generator) -> KLDocument:
    token_ids = _ids((n_tokens,), n_strings, generator)
    token_ids[: len(HOSTILE)] = torch.arange(len(HOSTILE))
    kl = torch.rand(n_tokens, generator=generator).pow(4) * 3 / (1 + number)
    kl[0] = torch.nan
    probabilities = torch.rand(2, n_tokens, 5, generator=generator).sort(dim=-1, descending=True).values
    n_carrying = min(8, n_latents)
    sparse = torch.rand(n_carrying, n_tokens, generator=generator) < 0.3
    return KLDocument(
        token_ids=token_ids,
        kl=kl,
        top_ids=_ids((2, n_tokens, 5), n_strings, generator),
        top_probabilities=probabilities / probabilities.sum(dim=-1, keepdim=True) * 0.9,
        latents=torch.arange(n_carrying) + number % max(1, n_latents - n_carrying),
        attributions=(torch.rand(n_carrying, n_tokens, generator=generator) - 0.3) * sparse,
        dataset="chat" if number % 2 else "fineweb",
    )


def _ids(shape: tuple[int, ...], n_strings: int, generator: torch.Generator) -> Tensor:
    common = torch.randint(len(HOSTILE), len(HOSTILE) + len(WORDS), shape, generator=generator)
    rare = torch.randint(len(HOSTILE), n_strings, shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 0.6, common, rare)
