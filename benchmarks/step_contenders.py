"""The training steps that `step.py` compares: ours, SAELens's and EleutherAI's sparsify's, on the joint input."""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import (
    BatchTopKTrainingSAEConfig,
    LoggingConfig,
    SAETrainer,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAE,
)

from sae_lens_crosscoder import (
    BatchTopKTrainingCrosscoderConfig,
    CrosscoderRunnerConfig,
    CrosscoderTrainer,
    MatryoshkaBatchTopKTrainingCrosscoderConfig,
    Source,
    SourceScaler,
    StandardTrainingCrosscoderConfig,
    TopKTrainingCrosscoderConfig,
)
from sae_lens_crosscoder._saelens import SAETrainerConfig
from sae_lens_crosscoder.training import TrainerParts

LEARNING_RATE = 1e-4
N_BATCHES = 16
FAR = 10**12  # samples of a run that no measurement reaches the end of


@dataclass(frozen=True)
class Shape:
    """Tokens of a batch, width of each of two sources, latents, active latents a token."""

    batch: int = 2048
    width: int = 512
    d_sae: int = 8192
    k: int = 100

    def __str__(self) -> str:
        return f"B {self.batch}, D 2x{self.width}, F {self.d_sae}, k {self.k}"

    @property
    def d_in(self) -> int:
        return 2 * self.width


@dataclass
class Contender:
    """One step on a batch, and what it trains."""

    step: Callable[[torch.Tensor], Any]
    """Makes a training step and returns the loss's terms as SAELens does, or sparsify's output."""

    model: torch.nn.Module


def batches(shape: Shape, seed: int = 0) -> list[torch.Tensor]:
    """Activations made of planted directions, some of which both sources share, and a little noise.

    Every token has about 40 of 4,096 directions with exponential weights, and each source has mean norm sqrt(width).
    """
    generator = torch.Generator().manual_seed(seed)
    n_directions, active = 4096, 40
    directions = torch.randn(n_directions, shape.d_in, generator=generator)
    directions[: n_directions // 4, shape.width :] = 0
    directions[n_directions // 4 : n_directions // 2, : shape.width] = 0
    made: list[torch.Tensor] = []
    for _ in range(N_BATCHES):
        weights = torch.empty(shape.batch, n_directions).exponential_(generator=generator)
        weights *= torch.rand(shape.batch, n_directions, generator=generator) < active / n_directions
        x = weights @ directions + 0.5 * torch.randn(shape.batch, shape.d_in, generator=generator)
        halves = x.view(shape.batch, 2, shape.width)
        made.append((halves * (shape.width**0.5 / halves.norm(dim=-1).mean(dim=0))[None, :, None]).flatten(1))
    return made


def ours(cfg_class: Any, shape: Shape, **fields: Any) -> Contender:
    """The trainer that `CrosscoderTrainingRunner` makes, on batches from memory."""
    own = {"normalize_activations": "none", "decoder_init_norm": 0.08, **fields}
    sources = [Source(label, "random", "hook", shape.width) for label in ("base", "chat")]
    cfg = CrosscoderRunnerConfig(
        sae=cfg_class(d_in=shape.d_in, d_sae=shape.d_sae, **own),
        sources=sources,
        training_tokens=FAR,
        train_batch_size_tokens=shape.batch,
        lr=LEARNING_RATE,
        lr_warm_up_steps=0,
        lr_decay_steps=0,
        dead_feature_window=1000,
        checkpoint_path=None,
        output_path=None,
        logger=LoggingConfig(log_to_wandb=False, wandb_log_frequency=FAR),
        verbose=False,
    )
    sae = TrainingSAE.from_dict(cfg.get_training_sae_cfg_dict())
    parts = TrainerParts(iter(()), SourceScaler(cfg.joint_sources), cfg.joint_sources)
    return _with_trainer(CrosscoderTrainer(cfg.to_sae_trainer_config(), sae, parts))


def saelens(cfg_class: Any, shape: Shape, **fields: Any) -> Contender:
    sae = TrainingSAE.from_dict(cfg_class(d_in=shape.d_in, d_sae=shape.d_sae, **fields).to_dict())
    cfg = SAETrainerConfig(
        total_training_samples=FAR,
        train_batch_size_samples=shape.batch,
        lr=LEARNING_RATE,
        lr_end=LEARNING_RATE / 10,
        logger=LoggingConfig(log_to_wandb=False),
    )
    return _with_trainer(SAETrainer(cfg, sae, iter(())))


def sparsify(shape: Shape) -> Contender:
    """sparsify's TopK coder; its trainer owns a model and a data set, so its step is written out, with Adam."""
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(shape.d_in, SparseCoderConfig(num_latents=shape.d_sae, k=shape.k))
    optimizer = torch.optim.Adam(coder.parameters(), lr=LEARNING_RATE, fused=True)

    def step(x: torch.Tensor) -> Any:
        coder.set_decoder_norm_to_unit_norm()
        output = coder(x)
        output.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return output

    return Contender(step, coder)


def _with_trainer(trainer: SAETrainer[Any, Any]) -> Contender:
    def step(x: torch.Tensor) -> Any:
        output = trainer.step(x)
        trainer.n_training_steps += 1
        return output

    return Contender(step, trainer.sae)


TOPK: dict[str, Callable[[Shape], Contender]] = {
    "SAELens BatchTopK": lambda s: saelens(BatchTopKTrainingSAEConfig, s, k=s.k),
    "SAELens TopK": lambda s: saelens(TopKTrainingSAEConfig, s, k=s.k),
    "sparsify TopK": sparsify,
    "batchtopk_crosscoder": lambda s: ours(BatchTopKTrainingCrosscoderConfig, s, k=s.k),
    "batchtopk_crosscoder, bfloat16 encoder": lambda s: ours(
        BatchTopKTrainingCrosscoderConfig, s, k=s.k, encoder_precision="bfloat16"
    ),
    "topk_crosscoder": lambda s: ours(TopKTrainingCrosscoderConfig, s, k=s.k),
    "matryoshka_batchtopk_crosscoder": lambda s: ours(MatryoshkaBatchTopKTrainingCrosscoderConfig, s, k=s.k),
}
"""Steps with k active latents a token; speed-ups are over the first."""

L1: dict[str, Callable[[Shape], Contender]] = {
    "SAELens Standard": lambda s: saelens(StandardTrainingSAEConfig, s, l1_coefficient=1.0),
    "standard_crosscoder": lambda s: ours(StandardTrainingCrosscoderConfig, s, l1_coefficient=1.0),
}
"""Steps with an L1 penalty; speed-ups are over the first."""


def installed(contenders: dict[str, Any]) -> dict[str, Any]:
    """The contenders whose package is there; says which are left out."""
    if importlib.util.find_spec("sparsify") is not None:
        return contenders
    left_out = [name for name in contenders if name.startswith("sparsify")]
    for name in left_out:
        print(f"{name} is left out: the package eai-sparsify is not installed.")
    return {name: make for name, make in contenders.items() if name not in left_out}


def endless(made: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    return itertools.cycle(made)


def quiet() -> None:
    warnings.filterwarnings("ignore")
