"""The training steps that `step.py` compares: ours, SAELens's and EleutherAI's sparsify's, on the joint input."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
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
    JumpReLUTrainingCrosscoderConfig,
    MatryoshkaBatchTopKTrainingCrosscoderConfig,
    Source,
    SourceScaler,
    StandardTrainingCrosscoderConfig,
    TopKTrainingCrosscoderConfig,
)
from sae_lens_crosscoder._saelens import SAETrainerConfig
from sae_lens_crosscoder.training import TrainerParts

LEARNING_RATE = 3e-4
STILL = 1e-12  # a learning rate that changes no weight
N_BATCHES = 4
FAR = 10**12  # samples of a run that no measurement reaches the end of


@dataclass(frozen=True)
class Shape:
    """Tokens of a batch, width of each of two sources, latents, active ones a token; the device and the precision."""

    batch: int = 2048
    width: int = 512
    d_sae: int = 8192
    k: int = 100
    device: str = "cpu"
    autocast: bool = False

    def __str__(self) -> str:
        return f"B {self.batch}, D 2x{self.width}, F {self.d_sae}, k {self.k}" + ", autocast" * self.autocast

    @property
    def d_in(self) -> int:
        return 2 * self.width


@dataclass
class Contender:
    """One step on a batch, and what it trains."""

    step: Callable[[torch.Tensor], Any]
    """Makes a training step and returns the loss's terms as SAELens does, or sparsify's output."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer

    @property
    def held_mb(self) -> float:
        """Weights, buffers and the optimizer's moments, which stay from step to step."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        held = [*self.model.parameters(), *self.model.buffers(), *states]
        return sum(tensor.nbytes for tensor in held) / 2**20


def batches(shape: Shape, n_batches: int = N_BATCHES, seed: int = 0) -> list[torch.Tensor]:
    """Activations made of planted directions, some of which both sources share, and a little noise.

    Every token has about 40 of 4,096 directions with exponential weights, and each source has mean norm sqrt(width).
    """
    generator = torch.Generator().manual_seed(seed)
    n_directions, active = 4096, 40
    directions = torch.randn(n_directions, shape.d_in, generator=generator)
    directions[: n_directions // 4, shape.width :] = 0
    directions[n_directions // 4 : n_directions // 2, : shape.width] = 0
    made: list[torch.Tensor] = []
    for _ in range(n_batches):
        weights = torch.empty(shape.batch, n_directions).exponential_(generator=generator)
        weights *= torch.rand(shape.batch, n_directions, generator=generator) < active / n_directions
        x = weights @ directions + 0.5 * torch.randn(shape.batch, shape.d_in, generator=generator)
        halves = x.view(shape.batch, 2, shape.width)
        made.append((halves * (shape.width**0.5 / halves.norm(dim=-1).mean(dim=0))[None, :, None]).flatten(1))
    return made


def ours(cfg_class: Any, shape: Shape, lr: float = LEARNING_RATE, **fields: Any) -> Contender:
    """The trainer that `CrosscoderTrainingRunner` makes, on batches from memory."""
    own = {"normalize_activations": "none", **fields}
    sources = [Source(label, "random", "hook", shape.width) for label in ("base", "chat")]
    cfg = CrosscoderRunnerConfig(
        sae=cfg_class(d_in=shape.d_in, d_sae=shape.d_sae, device=shape.device, **own),
        sources=sources,
        training_tokens=FAR,
        train_batch_size_tokens=shape.batch,
        lr=lr,
        lr_warm_up_steps=0,
        lr_decay_steps=0,
        device=shape.device,
        autocast=shape.autocast,
        dead_feature_window=1000,
        checkpoint_path=None,
        output_path=None,
        logger=LoggingConfig(log_to_wandb=False, wandb_log_frequency=FAR),
        verbose=False,
    )
    sae = TrainingSAE.from_dict(cfg.get_training_sae_cfg_dict())
    parts = TrainerParts(iter(()), SourceScaler(cfg.joint_sources), cfg.joint_sources)
    return _with_trainer(CrosscoderTrainer(cfg.to_sae_trainer_config(), sae, parts))


def saelens(cfg_class: Any, shape: Shape, lr: float = LEARNING_RATE, **fields: Any) -> Contender:
    own = {"device": shape.device, **fields}
    sae = TrainingSAE.from_dict(cfg_class(d_in=shape.d_in, d_sae=shape.d_sae, **own).to_dict())
    cfg = SAETrainerConfig(
        total_training_samples=FAR,
        train_batch_size_samples=shape.batch,
        lr=lr,
        lr_end=lr / 10,
        device=shape.device,
        autocast=shape.autocast,
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

    return Contender(step, coder, optimizer)


def _with_trainer(trainer: SAETrainer[Any, Any]) -> Contender:
    def step(x: torch.Tensor) -> Any:
        output = trainer.step(x)
        trainer.n_training_steps += 1
        return output

    return Contender(step, trainer.sae, trainer.optimizer)


def at_l0(make: Callable[[Shape], Contender]) -> Callable[[Shape], Contender]:
    """The contender with encoder biases lowered until k latents a token are active, as in a run that became sparse.

    Its learning rate has to be next to nothing: random weights that begin to learn have five times as many active
    latents after ten steps.
    """

    def made(shape: Shape) -> Contender:
        contender = make(shape)
        sae: Any = contender.model
        with torch.no_grad():
            hidden_pre = sae.encode_with_hidden_pre(batches(shape)[0])[1]
            least = hidden_pre.flatten().topk(shape.k * shape.batch, sorted=False).values.min()
            threshold = sae.log_threshold.exp() if hasattr(sae, "log_threshold") else 0.0
            sae.b_enc.add_(threshold - least)
        return contender

    return made


def _ours(cfg_class: Any, **fields: Any) -> Callable[[Shape], Contender]:
    return lambda shape: ours(cfg_class, shape, k=shape.k, **fields)


def _standard(shape: Shape, lr: float = LEARNING_RATE) -> Contender:
    return ours(StandardTrainingCrosscoderConfig, shape, lr, l1_coefficient=1.0)


def _saelens_standard(shape: Shape, lr: float = LEARNING_RATE) -> Contender:
    return saelens(StandardTrainingSAEConfig, shape, lr, l1_coefficient=1.0)


def _jumprelu(sparsity_loss: str) -> Callable[[Shape], Contender]:
    # About as many pairs lie in the lower half of the thresholds' windows as above the thresholds.
    own = {"sparsity_loss": sparsity_loss, "jumprelu_bandwidth": 0.05}
    return at_l0(lambda shape: ours(JumpReLUTrainingCrosscoderConfig, shape, STILL, **own))


REFERENCE, SPARSIFY, STANDARD, OURS = "SAELens BatchTopK", "sparsify TopK", "SAELens Standard", "batchtopk_crosscoder"
CONTENDERS: dict[str, Callable[[Shape], Contender]] = {
    REFERENCE: lambda shape: saelens(BatchTopKTrainingSAEConfig, shape, k=shape.k),
    "SAELens TopK": lambda shape: saelens(TopKTrainingSAEConfig, shape, k=shape.k),
    SPARSIFY: sparsify,
    OURS: _ours(BatchTopKTrainingCrosscoderConfig),
    f"{OURS}, bfloat16 encoder": _ours(BatchTopKTrainingCrosscoderConfig, encoder_precision="bfloat16"),
    "topk_crosscoder": _ours(TopKTrainingCrosscoderConfig),
    "matryoshka_batchtopk_crosscoder": _ours(MatryoshkaBatchTopKTrainingCrosscoderConfig),
    STANDARD: at_l0(lambda shape: _saelens_standard(shape, STILL)),
    "standard_crosscoder, L0 = k": at_l0(lambda shape: _standard(shape, STILL)),
    "jumprelu_crosscoder, tanh, L0 = k": _jumprelu("tanh"),
    "jumprelu_crosscoder, step, L0 = k": _jumprelu("step"),
    "SAELens Standard, young": _saelens_standard,
    "standard_crosscoder, young": _standard,
}
"""What is timed. L1 is timed with k active latents, and, where it says young, at the start of a run."""


def n_active(output: Any, d_sae: int) -> torch.Tensor:
    """On how many tokens every latent was active in a step."""
    if hasattr(output, "latent_indices"):  # sparsify's
        active = output.latent_indices[output.latent_acts > 0]
        return torch.bincount(active.flatten(), minlength=d_sae).float()
    acts = output.feature_acts.detach()
    return (acts.to_dense() if acts.is_sparse else acts).bool().float().sum(dim=0)


def installed(names: list[str]) -> list[str]:
    """The contenders whose package is there; says which is left out."""
    if SPARSIFY in names and importlib.util.find_spec("sparsify") is None:
        print(f"{SPARSIFY} is left out: the package eai-sparsify is not installed (the extra `bench`).")
        return [name for name in names if name != SPARSIFY]
    return names
