"""What a checkpoint format is to the loader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sae_lens import SAE

from sae_lens_crosscoder.hub.checked_files import CheckpointFolder
from sae_lens_crosscoder.hub.options import ReadOptions
from sae_lens_crosscoder.hub.weights import CrosscoderWeights


@dataclass(frozen=True)
class CheckpointFormat:
    """One system's way to save a crosscoder."""

    name: str
    """As it is given to `load_crosscoder(format=...)`."""

    files: str
    """What its folder looks like, for messages."""

    detect: Callable[[CheckpointFolder], bool]
    """Whether a folder looks like it, by the names of its files and its configuration; weights are not read."""

    read: Callable[[CheckpointFolder, ReadOptions], CrosscoderWeights | SAE[Any]]
    """The crosscoder. Raises CheckpointError for what is damaged or cannot be one SAE."""

    options: frozenset[str] = frozenset()
    """Fields of `ReadOptions` that it takes beside `sources`; others would have no effect."""
