"""Folders as finished runs leave them, made in no time: a random stock SAE with configurations, metrics and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from safetensors.torch import save_file

from sae_lens_crosscoder import Source, Sources
from sae_lens_crosscoder.diffing.diff_report import Column, LatentTable

HOOK = "blocks.13.hook_resid_post"
D_SAE = 24


def make_crosscoder(
    seed: int = 0, models: tuple[str, str] = ("google/gemma-2-2b", "google/gemma-2-2b-it"), **metadata: Any
) -> JumpReLUSAE:
    """A random crosscoder of two sources, 8 columns each."""
    generator = torch.Generator().manual_seed(seed)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=16, d_sae=D_SAE, device="cpu", apply_b_dec_to_input=False))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).abs() + 0.1)
        sae.W_enc.copy_(torch.randn(16, D_SAE, generator=generator))
        sae.W_dec.copy_(torch.randn(D_SAE, 16, generator=generator))
    sources = Sources(
        (
            Source("base", models[0], HOOK, 8, activation_scale=0.5),
            Source("chat", models[1], HOOK, 8, activation_scale=0.25),
        )
    )
    joined = {"model_name": sources.model_name, "hook_name": "blocks.0.hook_resid_joint", **metadata}
    for name, value in {**sources.to_metadata(), **joined}.items():
        sae.cfg.metadata[name] = value
    return sae


def crosscoder_folder(
    folder: Path, seed: int = 0, datasets: list[dict[str, Any]] | None = None, **crosscoder: Any
) -> Path:
    """The folder of a run: crosscoder, sparsity, configuration, metrics, curve and the diff's report."""
    datasets = datasets or [
        {"path": "monology/pile-uncopyrighted", "label": "pile", "weight": 0.25, "split": "train"},
        {"path": "lmsys/lmsys-chat-1m", "label": "chats", "weight": 0.75, "split": "train"},
    ]
    joined = "+".join(entry["path"] for entry in datasets)
    sae = make_crosscoder(seed, dataset_path=joined, training_architecture="batchtopk_crosscoder", **crosscoder)
    sae.cfg.metadata["training_architecture_details"] = {"k": 100, "decoder_norm": "sum"}
    sae.save_model(folder)
    generator = torch.Generator().manual_seed(seed)
    sparsity = {"sparsity": torch.rand(D_SAE, generator=generator).log10(), "dead_latents": torch.zeros(D_SAE)}
    save_file(sparsity, folder / "sparsity.safetensors")
    runner_cfg: dict[str, Any] = {
        "sae": {"d_in": 16, "d_sae": D_SAE, "k": 100, "architecture": "batchtopk_crosscoder"},
        "model_name": sae.cfg.metadata.model_name,
        "dataset_path": "",
        "datasets": datasets,
        "sources": sae.cfg.metadata.sources,
        "combine": "concat",
        "training_tokens": 819_200,
        "train_batch_size_tokens": 2048,
        "lr": 0.0015,
        "context_size": 64,
        "logger": {"log_to_wandb": True, "wandb_entity": "our-lab", "run_name": "third-try", "wandb_project": "secret"},
        "output_path": str(folder),
        "checkpoint_path": str(folder / "checkpoints"),
        "from_pretrained_path": None,
    }
    (folder / "runner_cfg.json").write_text(json.dumps(runner_cfg))
    measured = {"explained_variance": 0.91, "ce_loss_score": 0.98, "kl_div_score": 0.97}
    sources = {"base": measured, "chat": {**measured, "explained_variance": 0.875}}
    metrics = {"n_tokens": 20_160, "l0": 99.5, "dead_latents": 3, "explained_variance": 0.9, "sources": sources}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "training_curve.csv").write_text("step,l0\n10,100\n")
    (folder / "report.html").write_text("<html>base: google/gemma-2-2b, fires on: the owl</html>")
    (folder / "decoder.png").write_bytes(b"\x89PNG\r\n")
    classes = ["base-only"] * 2 + ["shared"] * (D_SAE - 3) + ["chat-only"]
    table = LatentTable(
        [Column("class", classes, "class", "whose decoder norm it is", "Decoder")],
        ["base", "chat"],
        {"classes": "exclusive above 0.95"},
    )
    (folder / "latents.parquet").write_bytes(table.to_parquet())
    (folder / "latents.csv").write_bytes(table.to_csv())
    return folder
