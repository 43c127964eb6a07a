"""Ends of a run that are not its own: what was trained is saved first, and the error says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sae_lens import TrainingSAE
from safetensors.torch import save

from sae_lens_crosscoder.activations.batches import ShardedBatches
from sae_lens_crosscoder.errors import (
    DataError,
    DivergedError,
    MemoryFullError,
    NonFiniteError,
    SaveError,
    TrainingInterrupted,
    WaitStopped,
    first_line,
)
from sae_lens_crosscoder.files import write_file
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.trainer import CrosscoderTrainer

NON_FINITE_BATCH = "non_finite_batch.safetensors"
"""Tokens and activations of the forward pass that stopped a run."""

_CHANGED = "with fields that were changed"  # auto looks for a run of the very same ones
_FULL = ("can't allocate memory", "out of memory", "cannot allocate memory")


def fit_or_save(
    trainer: CrosscoderTrainer, batches: ShardedBatches, cfg: CrosscoderRunnerConfig[Any]
) -> TrainingSAE[Any]:
    """Train; where the data, a model or the memory end it, save a checkpoint that goes on exactly there.

    Raises:
        NonFiniteError: A model gave no numbers; the batch that did it is in `output_path`.
        DataError: The data broke, or cannot be read on.
        MemoryFullError: A device has no memory left; the message names the field to lower.
        TrainingInterrupted: The run was asked to stop.
    """
    try:
        return trainer.fit()
    except WaitStopped as error:
        said, checkpoint = _saved(trainer, batches, cfg)
        raise TrainingInterrupted(f"Training was interrupted while it waited for data. {said}", checkpoint) from error
    except NonFiniteError as error:
        told = _told(str(error), trainer, batches, cfg)  # first: the batch may take the room of the checkpoint
        raise NonFiniteError(told + _kept_batch(error, cfg), error.batch) from error
    except DataError as error:
        raise type(error)(_told(str(error), trainer, batches, cfg)) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryFullError(_told(_advice(error, trainer), trainer, batches, cfg)) from error


def _kept_batch(error: NonFiniteError, cfg: CrosscoderRunnerConfig[Any]) -> str:
    """Save the batch that no training goes on from; what to tell of it."""
    if cfg.output_path is None:
        return ""
    try:
        path = write_file(Path(cfg.output_path) / NON_FINITE_BATCH, save(dict(error.batch)))
    except SaveError as refused:
        return f" The tokens and their activations could not be saved: {refused}"
    return f" The tokens and their activations are in {path}."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the machine or of a GPU was full, which torch reports in several ways."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _FULL)


def _advice(error: BaseException, trainer: CrosscoderTrainer) -> str:
    fields = {
        "harvest": "running the models. Lower store_batch_size_prompts (sequences that go through them at once) or "
        "context_size, or load the models in bfloat16",
        "step": "the training step. Lower train_batch_size_tokens (with lr) or d_sae, or divide the dictionary among "
        "several GPUs (dictionary_layout)",
        "logging": "the row of the training curve. Lower train_batch_size_tokens (with lr), or write rows more seldom "
        "(logger.wandb_log_frequency)",
        "evaluation": "the evaluation. Lower eval_batch_size_prompts",
    }
    return f"There was no memory left for {fields[trainer.doing]}: {first_line(error)}."


def _told(message: str, trainer: CrosscoderTrainer, batches: ShardedBatches, cfg: CrosscoderRunnerConfig[Any]) -> str:
    said, _ = _saved(trainer, batches, cfg)
    return f"Training stopped after step {trainer.n_training_steps}. {message} {said}"


def _saved(
    trainer: CrosscoderTrainer, batches: ShardedBatches, cfg: CrosscoderRunnerConfig[Any]
) -> tuple[str, str | None]:
    """Save a checkpoint if the run is between two steps, and can; what to tell, and its folder."""
    if cfg.checkpoint_path is None:
        return "Nothing was saved: there is no checkpoint_path.", None
    if trainer.n_training_steps == 0:
        return "Nothing was lost: no step had been made.", None
    if trainer.division.ranks.is_several or trainer.doing in ("logging", "evaluation"):
        # The other processes are elsewhere and would not take part; until it is logged a step is half counted.
        last = f"--resume with its folder below {cfg.checkpoint_path}"
        return f"The last checkpoint is what is saved; --resume auto goes on from it, {last} also {_CHANGED}.", None
    if trainer.n_training_samples >= trainer.cfg.total_training_samples:
        return "All steps were made, but not saved; --resume auto goes on from the last checkpoint.", None
    if trainer.undone_batch is not None:
        batches.put_back(trainer.undone_batch)
    checkpoint = f"{cfg.checkpoint_path}/{trainer.n_training_samples}"
    try:
        trainer.save_checkpoint(str(trainer.n_training_samples))
    except (SaveError, DivergedError) as refused:
        return f"No further checkpoint could be saved: {refused}", None
    told = f"What was trained is in {checkpoint}; --resume auto goes on from it, --resume {checkpoint} also {_CHANGED}."
    return told, checkpoint
