"""Trains one architecture on a planted pair, as a user would, at a given L0."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from planted_metrics import Judgement, judge
from planted_pair import PairConfig, PlantedPair
from sae_lens import SAE, LoggingConfig, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepOutput
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder import CrosscoderTrainer, SourceScaler, TrainingCrosscoderConfig
from sae_lens_crosscoder.training import TrainerParts


class Entry(NamedTuple):
    """One architecture of the table."""

    name: str
    config: type[TrainingCrosscoderConfig]
    fields: dict[str, Any]
    """Its fields that differ from the defaults; with a penalty, also the weight at which the search for L0 begins."""

    knob: str
    """The field that sets L0: "k", or the weight of the penalty, "l1_coefficient" or "l0_coefficient"."""


@dataclass(frozen=True)
class Plan:
    """What is planted, and how every architecture trains on it; all alike."""

    pair: PairConfig = field(default_factory=PairConfig)

    n_steps: int = 2000
    batch_size: int = 256
    d_sae: int = 256
    lr: float = 3e-3
    n_eval_tokens: int = 20_000


@dataclass(frozen=True)
class PlantedRun:
    """A trained crosscoder with its truth, and fresh tokens to judge it on."""

    pair: PlantedPair
    sae: SAE[Any]
    """The stock SAE, as it is loaded from disk."""

    scales: list[float]
    """Activation scale of each model that is folded into the SAE."""

    coefficient: float | None
    """The weight of the penalty that gave the L0; None for an architecture with k."""

    tokens: tuple[Float[Tensor, "n n_features"], Float[Tensor, "n d_in"]]
    """Feature strengths and raw activations that training did not see, the same for every architecture of a seed."""

    def judgement(self) -> Judgement:
        return judge(self.sae, self.scales, self.pair, self.tokens)


class EqualL0Trainer(CrosscoderTrainer):
    """Trainer that moves the weight of the sparsity penalty until L0 is what is asked for.

    From a fifth of the run on, each step adds 0.008 log(L0 / target) to the logarithm of the weight, with L0 a moving
    average over some twenty steps and its logarithm clipped at 1/2.
    """

    target_l0: float
    mean_l0: float | None = None

    @override
    def step(self, batch: Float[Tensor, "batch d_in"]) -> TrainStepOutput:
        output = super().step(batch)
        acts = output.feature_acts
        # The sparse step gives the active codes alone.
        l0 = ((acts.coalesce().values() if acts.is_sparse else acts) > 0).sum().item() / len(acts)
        self.mean_l0 = l0 if self.mean_l0 is None else 0.95 * self.mean_l0 + 0.05 * l0
        if self.n_training_steps >= self.cfg.total_training_steps // 5:
            (scheduler,) = self.coefficient_schedulers.values()
            excess = math.log(max(self.mean_l0, 1e-3) / self.target_l0)
            scheduler.final_value *= math.exp(0.008 * max(-0.5, min(0.5, excess)))
        return output


def planted_run(entry: Entry, seed: int, plan: Plan) -> PlantedRun:
    """Plant a pair, train the entry on it at the planted L0, save it, and load what was saved."""
    pair = PlantedPair.plant(plan.pair, seed)
    has_k = entry.knob == "k"
    fields: dict[str, Any] = {**entry.fields, **({"k": pair.cfg.n_active} if has_k else {})}
    cfg = entry.config(d_in=pair.sources.d_in, d_sae=plan.d_sae, source_widths=pair.sources.widths, **fields)
    cfg.fill_in_schedule(plan.n_steps // 5)  # warm-ups end before the search for L0 begins
    trainer_class = CrosscoderTrainer if has_k else EqualL0Trainer
    parts = TrainerParts(pair.batches(plan.batch_size), SourceScaler(pair.sources), pair.sources)
    trainer = trainer_class(_trainer_config(plan), TrainingSAE.from_dict(cfg.to_dict()), parts)
    if isinstance(trainer, EqualL0Trainer):
        trainer.target_l0 = pair.cfg.n_active
    sae = trainer.fit()
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        saved = SAE.load_from_disk(folder)
    torch.manual_seed(1_000_000 + seed)
    return PlantedRun(
        pair=pair,
        sae=saved,
        scales=trainer.folded_scales,
        coefficient=None if has_k else next(iter(trainer.get_coefficients().values())),
        tokens=pair.sample(plan.n_eval_tokens),
    )


def _trainer_config(plan: Plan) -> SAETrainerConfig:
    never = 2**31 - 1
    return SAETrainerConfig(
        total_training_samples=plan.n_steps * plan.batch_size,
        train_batch_size_samples=plan.batch_size,
        lr=plan.lr,
        lr_end=plan.lr / 10,
        lr_warm_up_steps=plan.n_steps // 20,
        lr_decay_steps=plan.n_steps // 2,
        dead_feature_window=plan.n_steps // 10,
        feature_sampling_window=never,
        logger=LoggingConfig(log_to_wandb=False, wandb_log_frequency=never),
        n_batches_for_norm_estimate=50,
    )
