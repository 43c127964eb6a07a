"""Trainers of toy crosscoders without models, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from helpers import run_config, source
from sae_lens import TrainingSAE

from sae_lens_crosscoder import (
    BatchTopKTrainingCrosscoderConfig,
    CrosscoderTrainer,
    JumpReLUTrainingCrosscoderConfig,
    MatryoshkaBatchTopKTrainingCrosscoderConfig,
    SourceScaler,
    StandardTrainingCrosscoderConfig,
    TopKTrainingCrosscoderConfig,
)
from sae_lens_crosscoder.training import TrainerParts

CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "topk": (TopKTrainingCrosscoderConfig, {"k": 3}),
    "batchtopk": (BatchTopKTrainingCrosscoderConfig, {"k": 3, "k_start": 6, "k_annealing_steps": 50}),
    "matryoshka": (MatryoshkaBatchTopKTrainingCrosscoderConfig, {"k": 3}),
    "standard": (StandardTrainingCrosscoderConfig, {"l1_coefficient": 0.5}),
    "jumprelu": (JumpReLUTrainingCrosscoderConfig, {"l0_coefficient": 0.1, "jumprelu_bandwidth": 0.5}),
}


def trainer(name: str, d_sae: int = 64, batch: int = 64, **fields: Any) -> CrosscoderTrainer:
    torch.manual_seed(0)
    config, own = CONFIGS[name]
    values = {"normalize_activations": "none", "dtype": "float64", "d_in": 24, "d_sae": d_sae, **own, **fields}
    sae = config(**values)
    cfg = run_config(
        sae,
        sources=[source("base", d_in=12), source("chat", d_in=12)],
        dtype="float64",
        training_tokens=batch * 10_000,
        train_batch_size_tokens=batch,
        dead_feature_window=10,
        lr_warm_up_steps=0,
    )
    sae = TrainingSAE.from_dict(cfg.get_training_sae_cfg_dict())
    return CrosscoderTrainer(
        cfg.to_sae_trainer_config(),
        sae,
        TrainerParts(iter(()), SourceScaler(cfg.joint_sources), cfg.joint_sources),
    )


def batch_of(seed: int, n: int = 64) -> torch.Tensor:
    """Tokens made of a few of 40 directions, and noise."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(40, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    weights = torch.rand(n, 40, dtype=torch.float64, generator=generator)
    x = (weights * (torch.rand(n, 40, generator=generator) < 0.08)) @ directions
    return x + 0.1 * torch.randn(n, 24, dtype=torch.float64, generator=generator)
