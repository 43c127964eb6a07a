"""A step that fails leaves nothing behind, so that a checkpoint can be saved and goes on with that very step."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, runtime_checkable

from sae_lens import TrainingSAE
from torch import Tensor
from torch.optim import Adam

Doing = Literal["harvest", "step", "logging", "evaluation"]
"""What a run is at, for whoever explains why it ended."""


@runtime_checkable
class Steps(Protocol):
    """A trainer, as far as a step that fails has to be undone in it."""

    sae: TrainingSAE[Any]
    optimizer: Adam
    n_training_samples: int
    n_frac_active_samples: int
    act_freq_scores: Tensor
    n_forward_passes_since_fired: Tensor
    doing: Doing
    undone_batch: Tensor | None


@contextmanager
def undone_if_it_fails(trainer: Steps, batch: Tensor) -> Generator[None]:
    """Undo, in a block with one step, what it changed before memory ended: counters and moving averages.

    Weights change last, in Adam's pass, which takes no memory after the first step.
    """
    trainer.doing = "step"
    n_samples, n_counted = trainer.n_training_samples, trainer.n_frac_active_samples
    fired, silent = trainer.act_freq_scores.clone(), trainer.n_forward_passes_since_fired.clone()
    buffers = {name: values.clone() for name, values in trainer.sae.named_buffers()}
    try:
        yield
    except (RuntimeError, MemoryError):
        trainer.n_training_samples, trainer.n_frac_active_samples = n_samples, n_counted
        trainer.act_freq_scores, trainer.n_forward_passes_since_fired = fired, silent
        for name, values in trainer.sae.named_buffers():
            values.copy_(buffers[name])
        trainer.optimizer.zero_grad()
        trainer.undone_batch = batch
        raise
