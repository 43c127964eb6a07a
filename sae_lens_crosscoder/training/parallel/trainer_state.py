"""The state of a training run on several ranks, put together for a checkpoint and taken apart again.

A checkpoint holds whole weights and moments, so it does not know how many processes wrote it.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from sae_lens import TrainingSAE
from torch import Tensor
from torch.optim import Adam

from sae_lens_crosscoder.files import written_aside
from sae_lens_crosscoder.ranks import Ranks
from sae_lens_crosscoder.training.crosscoder import TrainingCrosscoder
from sae_lens_crosscoder.training.parallel.division import Division
from sae_lens_crosscoder.training.parallel.weights import gathered, own_part, whole_crosscoder

_COUNTERS = ("act_freq_scores", "n_forward_passes_since_fired")


@runtime_checkable
class HasState(Protocol):
    """A trainer, as far as its state is divided."""

    sae: TrainingSAE[Any]
    optimizer: Adam
    division: Division
    act_freq_scores: Tensor
    n_forward_passes_since_fired: Tensor


@contextmanager
def folder_of_all(target: Path, ranks: Ranks) -> Generator[Path]:
    """A folder that all ranks write to aside, and that the first moves into place; all see one file system."""
    if ranks.is_first:
        with written_aside(target) as folder:
            ranks.from_first(str(folder))
            yield folder
    else:
        yield Path(ranks.from_first(None))
    ranks.wait()


@contextmanager
def whole_state(trainer: HasState) -> Generator[None]:
    """Let the first rank's trainer have the weights, moments and counters of all ranks inside the `with` block."""
    sae, state = trainer.sae, trainer.optimizer.state
    if not (trainer.division.splits_latents and isinstance(sae, TrainingCrosscoder)):
        yield
        return
    ranks = trainer.division.ranks
    parts = {weights: state[weights] for weights in sae.parameters() if weights in state}
    counters = {name: getattr(trainer, name) for name in _COUNTERS}
    try:
        trainer.sae = whole_crosscoder(sae)
        for name, weights in sae.named_parameters():
            if weights in parts:
                state[weights] = {key: gathered(moment, name, ranks) for key, moment in parts[weights].items()}
        for name, counter in counters.items():
            setattr(trainer, name, gathered(counter, "", ranks))
        yield
    finally:
        trainer.sae = sae
        state.update(cast(Any, parts))
        for name, counter in counters.items():
            setattr(trainer, name, counter)


def keep_own_part(trainer: HasState) -> None:
    """Keep this rank's part of the moments and counters of all latents."""
    sae = trainer.sae
    if not (trainer.division.splits_latents and isinstance(sae, TrainingCrosscoder)):
        return
    for name, weights in sae.named_parameters():
        moments = cast("dict[str, Tensor]", trainer.optimizer.state.get(weights, {}))
        moments.update({key: own_part(moment, name, sae.shard) for key, moment in moments.items()})
    for name in _COUNTERS:
        setattr(trainer, name, getattr(trainer, name)[sae.shard.slice].clone())
