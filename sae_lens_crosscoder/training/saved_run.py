"""A folder that `CrosscoderTrainingRunner` wrote, read back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Bool
from sae_lens import SAE
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sae_lens_crosscoder._saelens import RUNNER_CFG_FILENAME, SAE_CFG_FILENAME, SPARSITY_FILENAME, UNREADABLE_SAE
from sae_lens_crosscoder.errors import DataError, NotFoundError, first_line
from sae_lens_crosscoder.fields import merged, read_config_file
from sae_lens_crosscoder.files import existing_folder
from sae_lens_crosscoder.sources import Sources
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig

METRICS_FILENAME = "metrics.json"
DEAD_LATENTS = "dead_latents"
"""Tensor beside the sparsity: 1 for latents that were dead when training ended."""


class SavedRun:
    """A trained crosscoder on disk, with its sources and the configuration of its run.

    Args:
        folder: The `output_path` of the run.
        device: Where the crosscoder is loaded.

    Raises:
        NotFoundError: The folder is not there, or holds no SAELens SAE.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        self.folder = existing_folder(folder, "crosscoder")
        self.device = device
        if not (self.folder / SAE_CFG_FILENAME).is_file():
            raise NotFoundError(f"{self.folder} holds no {SAE_CFG_FILENAME}, so it is no folder of a SAELens SAE.")

    @cached_property
    def sae(self) -> SAE[Any]:
        """The crosscoder: a stock SAELens SAE over raw joint activations.

        Raises:
            DataError: The files are damaged, or those of an architecture that is not known.
        """
        try:
            return SAE.load_from_disk(self.folder, device=self.device)
        except UNREADABLE_SAE as error:
            raise DataError(f"The crosscoder in {self.folder} cannot be read: {first_line(error)}") from error

    @cached_property
    def sources(self) -> Sources:
        """Which columns belong to which model.

        Raises:
            SourceError: The SAE is no crosscoder.
        """
        return Sources.from_metadata(self.sae.cfg.metadata)

    @cached_property
    def dead(self) -> Bool[Tensor, " d_sae"] | None:
        """Latents that were dead at the end of training (`dead_feature_window`); None if that was not saved.

        Raises:
            DataError: The file is damaged.
        """
        path = self.folder / SPARSITY_FILENAME
        try:
            dead = load_file(path).get(DEAD_LATENTS) if path.is_file() else None
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} cannot be read: {first_line(error)}") from error
        return None if dead is None else dead.bool()

    def metrics(self) -> dict[str, Any]:
        """The evaluation that the run made of what it saved.

        Raises:
            NotFoundError: The run made none (`n_eval_batches=0`).
            ConfigError: The file is damaged.
        """
        path = self.folder / METRICS_FILENAME
        if not path.is_file():
            raise NotFoundError(f"{self.folder} holds no {METRICS_FILENAME}: the run was not evaluated.")
        return read_config_file(path)

    def config(self, overrides: Mapping[str, Any] | None = None) -> CrosscoderRunnerConfig[Any]:
        """The configuration of the run.

        Args:
            overrides: Fields to change, such as the data sets to evaluate on.

        Raises:
            NotFoundError: The folder holds no run configuration.
            ConfigError: A field that cannot be.
            SourceError: The file wants code of a model's repository to be run.
        """
        path = self.folder / RUNNER_CFG_FILENAME
        if not path.is_file():
            raise NotFoundError(
                f"{self.folder} holds no {RUNNER_CFG_FILENAME}, as a converted crosscoder does not: it is unknown "
                "which data it was trained on. Read its weights alone (diff --decoder-only), or give the text in "
                "Python (model_diff.DiffSubject, dashboards.DashboardSubject)."
            )
        values = read_config_file(path)
        if overrides and overrides.get("datasets"):
            values["dataset_path"] = ""
        cfg = CrosscoderRunnerConfig.from_dict(merged(values, {**(overrides or {}), "verbose": False}))
        cfg.joint_sources.check_trusted()
        return cfg
