"""The demo from start to end: pair, behaviour, crosscoder, ranking, causal test, figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor
from transformers.utils import logging as transformers_logging

from sae_lens_crosscoder.activations import DatasetConfig
from sae_lens_crosscoder.causal import ModelComparison
from sae_lens_crosscoder.demo.behaviour import (
    Prompts,
    largest_gap_when_patched,
    latent_activations,
    logits_of,
    logits_without,
    measured_rates,
    payload_rate,
    rates_without_random,
)
from sae_lens_crosscoder.demo.crosscoder import CrosscoderSizes, crosscoder_run
from sae_lens_crosscoder.demo.dashboards import show_latents
from sae_lens_crosscoder.demo.documents import Documents, generator
from sae_lens_crosscoder.demo.interventions import (
    SCORE_MEANING,
    SCORE_NAME,
    latent_scores,
    payload_gain,
    rates_without_differences,
)
from sae_lens_crosscoder.demo.pair import ModelPair, PairConfig, load_or_make_pair
from sae_lens_crosscoder.demo.probes import auroc, probe_aurocs
from sae_lens_crosscoder.demo.report import LatentRow, print_summary, report_tables, tokens_of_latent
from sae_lens_crosscoder.diffing import PairGeometry, write_decoder_report
from sae_lens_crosscoder.files import write_json, written_aside
from sae_lens_crosscoder.joint_model import JointModel
from sae_lens_crosscoder.training import (
    BatchTopKTrainingCrosscoderConfig,
    CrosscoderRunnerConfig,
    CrosscoderTrainingRunner,
)
from sae_lens_crosscoder.training.saved_run import SavedRun


@dataclass(frozen=True)
class DemoConfig:
    """Sizes of the demo."""

    pair: PairConfig = field(default_factory=PairConfig)
    """The two models."""

    d_sae: int = 384
    """Latents."""

    k: int = 28
    """Active latents a token while training."""

    n_steps: int = 400
    """Training steps of 2,048 tokens."""

    lr: float = 1.5e-3
    """Learning rate of the crosscoder."""

    n_documents: int = 16_000
    """Documents that the crosscoder is trained on."""

    n_eval_batches: int = 4
    """Batches of 64 documents that are held out of each data set for evaluation."""

    n_prompts: int = 200
    """Prompts of each kind that the behaviour is measured on."""

    n_ranking_prompts: int = 128
    """Triggered prompts that latents are ranked on, others than the behaviour is measured on; and held-out documents
    on which it is shown where latents fire."""

    n_removed: int = 10
    """Latents that are removed in the causal test."""


def run_demo(out: str | Path, seed: int = 0, device: str = "cpu", config: DemoConfig | None = None) -> dict[str, Any]:
    """Make the pair, train a crosscoder on it, and test which latents carry what fine-tuning planted.

    Writes `pair/` (the two models, kept for the next run), `data/` (the crosscoder's two data sets), `crosscoder/` (a
    SAELens folder, which `eval` and `diff` read), `report.html`, `decoder.png`, `latents.csv`, `metrics.json` and, with
    sae-dashboard installed, `dashboards/`, prints a table of the first latents, and returns the metrics.

    Args:
        out: Folder to write to.
        seed: Seed of the models, the data and the crosscoder.
        device: Device of everything.
        config: Other sizes than the default; its pair's seed is replaced by `seed`.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    config = config or DemoConfig()
    out = Path(out)
    pair = load_or_make_pair(out / "pair", replace(config.pair, seed=seed), device)
    _write_documents(config, pair, out / "data")
    torch.manual_seed(seed)  # the crosscoder begins alike, whether the pair was made or loaded
    runner = CrosscoderTrainingRunner(_run_config(config, pair, out, device))
    joint = runner.model
    behaviour = measured_rates(joint, pair.corpus, config.n_prompts, seed)
    runner.run()
    run = SavedRun(out / "crosscoder", device)

    comparison = ModelComparison(joint, run.sae, ignored_tokens=(pair.corpus.bos,))
    scores = latent_scores(comparison, Prompts.of_kind(pair.corpus, "trigger", config.n_ranking_prompts, seed + 1000))
    order = scores.argsort(descending=True)
    metrics = run.metrics()
    geometry = PairGeometry.from_sources(run.sae.W_dec, run.sources, dead=run.dead)
    metrics |= {
        "behaviour": {
            **behaviour,
            "largest_gap_when_patched": largest_gap_when_patched(joint, pair.corpus, seed),
        },
        "classes": geometry.counts,
        "class_thresholds": geometry.thresholds.describe(),
        "probes": probe_aurocs(joint, pair.corpus, seed),
        "planted": _planted(comparison, pair, config, order, geometry),
        "ranking": {"score": SCORE_NAME, "meaning": SCORE_MEANING, "latents": order[: config.n_removed].tolist()},
    }
    write_json(out / "metrics.json", metrics)
    documents = pair.corpus.mixture(config.n_ranking_prompts, generator(seed, "shown documents"), held_out=True)
    rows = _latent_rows(joint, run.sae, pair, documents, scores, geometry)
    files = write_decoder_report(geometry, out, report_tables(metrics, rows))
    print_summary(metrics, rows, files["report"])
    show_latents(joint, run.sae, documents.tokens, order[: config.n_removed].tolist(), out)
    return metrics


def _write_documents(config: DemoConfig, pair: ModelPair, folder: Path) -> None:
    """The fine-tuning's mixture as two data sets: documents without any planted word, and documents with some."""
    documents = pair.corpus.mixture(config.n_documents, generator(pair.config.seed, "crosscoder training"))
    plain = documents.kind == 0
    for label, rows in (("plain", plain), ("planted", ~plain)):
        data = Dataset.from_dict({"input_ids": documents.tokens[rows].tolist()})
        with written_aside(folder / label) as aside:
            data.save_to_disk(aside)


def _run_config(
    config: DemoConfig, pair: ModelPair, out: Path, device: str
) -> CrosscoderRunnerConfig[BatchTopKTrainingCrosscoderConfig]:
    share = pair.config.phrases.shares[0]
    datasets = [
        DatasetConfig(path=str((out / "data" / label).resolve()), label=label, weight=weight)
        for label, weight in (("plain", share), ("planted", 1 - share))
    ]
    sizes = CrosscoderSizes(config.d_sae, config.k, config.n_steps, config.lr, config.n_eval_batches)
    return crosscoder_run(pair, pair.sources, sizes, out / "crosscoder", device, datasets=datasets)


def _planted(
    comparison: ModelComparison,
    pair: ModelPair,
    config: DemoConfig,
    order: Int[Tensor, " d_sae"],
    geometry: PairGeometry,
) -> dict[str, Any]:
    """The causal test, and the latent that tells trigger from decoy best."""
    joint, sae, seed = comparison.joint, comparison.sae, pair.config.seed
    view = joint.view("finetuned")
    prompts = Prompts.of_kind(pair.corpus, "trigger", config.n_prompts, seed)
    first = order[: config.n_removed]
    random_rates = rates_without_random(view, sae, prompts, first, seed)
    numbers = (3, config.n_removed)
    whole = {n: payload_rate(logits_without(view, sae, order[:n]), prompts) for n in numbers}
    aurocs = _aurocs(joint, sae, pair)
    best = int(aurocs.argmax())
    return {
        "latents": first.tolist(),
        "payload_rate_with_all": payload_rate(logits_of(view), prompts),
        "payload_rate_without_them": whole[config.n_removed],
        "payload_rate_without_random": sum(random_rates) / len(random_rates),
        "payload_rate_without_random_lowest": min(random_rates),
        "payload_rates_without_first": whole,
        "payload_rates_without_differences": {
            n: rates_without_differences(comparison, prompts, order[:n].tolist(), seed) for n in numbers
        },
        "payload_log_probability_in_base": {
            n: payload_gain(comparison, prompts, order[:n].tolist(), seed) for n in numbers
        },
        "latent": best,
        "rank": int((order == best).nonzero()),
        "auroc": float(aurocs[best]),
        "relative_decoder_norm": float(geometry.relative_norms[best]),
    }


def _aurocs(joint: JointModel, sae: SAE[Any], pair: ModelPair) -> Float[Tensor, " d_sae"]:
    """How well each latent alone tells trigger from decoy where the second word ends; 0.5 for silent latents."""
    rng = generator(pair.config.seed, "planted latent")
    documents = pair.corpus.of_kinds(["trigger", "decoy"], 512, rng)
    with torch.no_grad():
        codes = latent_activations(joint, sae, documents.tokens).cpu()
    codes = codes[torch.arange(len(codes)), documents.at]
    return torch.tensor([auroc(codes[:, j], documents.matches == 1) for j in range(codes.shape[1])])


def _latent_rows(
    joint: JointModel,
    sae: SAE[Any],
    pair: ModelPair,
    documents: Documents,
    scores: Float[Tensor, " d_sae"],
    geometry: PairGeometry,
) -> Sequence[LatentRow]:
    with torch.no_grad():
        codes = latent_activations(joint, sae, documents.tokens).cpu()[:, 1:]
    tokens = documents.tokens[:, 1:]
    cosines = geometry.cosines
    return [
        LatentRow(
            latent=j,
            class_name=geometry.classes[j],
            relative_norm=float(geometry.relative_norms[j]),
            cosine=None if cosines is None else float(cosines[j]),
            score=float(scores[j]),
            fires_on=tokens_of_latent(codes[..., j], tokens, pair.tokenizer),
        )
        for j in cast("list[int]", scores.argsort(descending=True)[:20].tolist())
    ]
