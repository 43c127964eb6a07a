"""A folder that `CrosscoderTrainingRunner` wrote, read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from sae_lens import SAE
from safetensors.torch import load_file
from torch import Tensor

from sae_lens_crosscoder._saelens import RUNNER_CFG_FILENAME, SAE_CFG_FILENAME, SPARSITY_FILENAME
from sae_lens_crosscoder.errors import NotFoundError
from sae_lens_crosscoder.files import existing_folder
from sae_lens_crosscoder.sources import Sources
from sae_lens_crosscoder.training.runner import METRICS_FILENAME
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig


@dataclass(frozen=True)
class SavedRun:
    """A trained crosscoder on disk, with its sources and the configuration of its run.

    Raises:
        NotFoundError: The folder is not there, or holds no SAELens SAE.
    """

    folder: Path
    """The `output_path` of the run."""

    device: str = "cpu"
    """Where the crosscoder is loaded."""

    def __post_init__(self) -> None:
        existing_folder(self.folder, "crosscoder")
        if not (self.folder / SAE_CFG_FILENAME).is_file():
            raise NotFoundError(f"{self.folder} holds no {SAE_CFG_FILENAME}, so it is no folder of a SAELens SAE.")

    @cached_property
    def sae(self) -> SAE[Any]:
        """The crosscoder: a stock SAELens SAE over raw joint activations."""
        return SAE.load_from_disk(self.folder, device=self.device)

    @cached_property
    def sources(self) -> Sources:
        """Which columns belong to which model.

        Raises:
            SourceError: The SAE is no crosscoder.
        """
        return Sources.from_metadata(self.sae.cfg.metadata)

    @cached_property
    def dead(self) -> Bool[Tensor, " d_sae"] | None:
        """Latents that never fired in the last sparsity window of training; None if that was not saved."""
        path = self.folder / SPARSITY_FILENAME
        if not path.is_file():
            return None
        # SAELens saves log10(frequency + 1e-10): -10 means never.
        return load_file(path)["sparsity"] <= torch.tensor(-9.99)

    def metrics(self) -> dict[str, Any]:
        """The evaluation that the run made of what it saved.

        Raises:
            NotFoundError: The run made none (`n_eval_batches=0`).
        """
        path = self.folder / METRICS_FILENAME
        if not path.is_file():
            raise NotFoundError(f"{self.folder} holds no {METRICS_FILENAME}: the run was not evaluated.")
        return json.loads(path.read_text())

    def config(self, overrides: Mapping[str, Any] | None = None) -> CrosscoderRunnerConfig[Any]:
        """The configuration of the run.

        Args:
            overrides: Fields to change, such as the data sets to evaluate on.

        Raises:
            NotFoundError: The folder holds no run configuration.
            ConfigError: A field that cannot be.
        """
        path = self.folder / RUNNER_CFG_FILENAME
        if not path.is_file():
            raise NotFoundError(
                f"{self.folder} holds no {RUNNER_CFG_FILENAME}: it is unknown which data the crosscoder was trained on."
            )
        values: dict[str, Any] = json.loads(path.read_text())
        return CrosscoderRunnerConfig.from_dict({**values, **(overrides or {}), "verbose": False})
