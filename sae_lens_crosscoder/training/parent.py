"""The crosscoder that a run goes on from: a training checkpoint, or what a finished run saved, unfolded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from sae_lens import TrainingSAE
from safetensors.torch import load_file

from sae_lens_crosscoder._saelens import (
    ACTIVATION_SCALER_CFG_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SPARSITY_FILENAME,
    TRAINER_STATE_FILENAME,
    UNREADABLE_SAE,
    ActivationScaler,
)
from sae_lens_crosscoder.activations import SourceScaler
from sae_lens_crosscoder.errors import CrosscoderError, DataError, NotFoundError, first_line
from sae_lens_crosscoder.fields import read_config_file
from sae_lens_crosscoder.files import existing_folder
from sae_lens_crosscoder.training.crosscoder import CANONICAL_NORMS, TrainingCrosscoder
from sae_lens_crosscoder.training.sae_config import sae_config
from sae_lens_crosscoder.training.saved_run import SavedRun
from sae_lens_crosscoder.training.versions import migrated_config


@dataclass(frozen=True)
class Parent:
    """A trained crosscoder with its weights as they were in training."""

    path: str
    """Where it was read from, as given."""

    sae: TrainingSAE[Any]
    """The training crosscoder, activation scales and decoder norms not folded in."""

    scales: float | list[float] | None
    """The factors that its activations were scaled by, one a source (SAELens's own classes have one for all)."""

    stages: list[str | None]
    """Stages that led to it, the oldest first and its own last; None for a run without a name."""

    def set_scales(self, scaler: ActivationScaler) -> None:
        """Let the scaler scale as the parent did, source by source in the order of their columns."""
        if isinstance(scaler, SourceScaler):
            scaler.scaling_factor = None if self.scales is None else torch.tensor(self.scales, dtype=torch.float64)
        else:
            scaler.scaling_factor = cast("float | None", self.scales)


def load_parent(path: str, device: str = "cpu") -> Parent:
    """The crosscoder of a checkpoint or of a finished run.

    Args:
        path: A checkpoint folder, whose weights and scales are taken exactly, or the `output_path` of a finished run,
            whose canonical weights are unfolded by the norms and scales saved beside them, exact up to rounding.
        device: Where it is loaded.

    Raises:
        NotFoundError: There is no such folder, or it holds neither.
        DataError: Files that are damaged or do not fit together.
    """
    folder = existing_folder(path, "pretrained training crosscoder")
    try:
        return _parent_in(folder, path, device)
    except CrosscoderError:
        raise
    except UNREADABLE_SAE as error:
        raise DataError(f"The files of {path} are damaged, or do not fit together: {first_line(error)}") from error


def _parent_in(folder: Path, path: str, device: str) -> Parent:
    left_out = _left_out_of_inference(folder, device)
    if left_out is not None:
        return _from_finished_run(path, left_out, device)
    if (folder / RUNNER_CFG_FILENAME).is_file() and not (folder / TRAINER_STATE_FILENAME).is_file():
        raise NotFoundError(
            f"{folder} holds a finished SAE without the {CANONICAL_NORMS} to unfold it by: it is of a stock SAELens "
            "architecture, or was saved by an older version. To go on from it give one of its checkpoints "
            "(n_checkpoints, save_final_checkpoint)."
        )
    sae = load_training_sae(folder, device)
    scaler = folder / ACTIVATION_SCALER_CFG_FILENAME
    scales = json.loads(scaler.read_text())["scaling_factor"] if scaler.is_file() else None
    if scales is not None:
        torch.as_tensor(scales, dtype=torch.float64)  # what are no numbers would fail only when training begins
    return Parent(path, sae, scales, _stages(vars(sae.cfg.metadata)))


def load_training_sae(folder: Path, device: str) -> TrainingSAE[Any]:
    """Raises:
    NotFoundError: The folder holds no training crosscoder.
    """
    try:
        # Not load_from_disk: it casts every buffer to the weights' dtype, the BatchTopK threshold too.
        sae = TrainingSAE.from_dict({**json.loads((folder / SAE_CFG_FILENAME).read_text()), "device": device})
        sae.load_weights_from_checkpoint(folder)
        return sae
    except UNREADABLE_SAE as error:
        raise NotFoundError(
            f"{folder} holds no training crosscoder: {first_line(error)}. Give a checkpoint, or the output of a run "
            f"whose {SPARSITY_FILENAME} holds {CANONICAL_NORMS}."
        ) from error


def _from_finished_run(path: str, left_out: dict[str, torch.Tensor], device: str) -> Parent:
    run = SavedRun(Path(path), device)
    values = migrated_config(read_config_file(run.folder / RUNNER_CFG_FILENAME)).get("sae")
    if not isinstance(values, dict):
        raise DataError(f"{RUNNER_CFG_FILENAME} of {path} does not say which crosscoder was trained (`sae`).")
    sae = TrainingSAE.from_dict({**sae_config(cast("dict[str, Any]", values)).to_dict(), "device": device})
    if not isinstance(sae, TrainingCrosscoder):
        raise DataError(f"{path} holds {CANONICAL_NORMS}, but its configuration is that of {sae.cfg.architecture()}.")
    scales = run.sources.activation_scales
    sae.load_inference_state_dict(run.sae.state_dict(), left_out, scales)
    # Without normalisation there may be scales all the same: of a finished crosscoder that went on.
    trained_with_scales = sae.cfg.normalize_activations != "none" or any(scale != 1 for scale in scales)
    scales = scales if trained_with_scales else None
    return Parent(path, sae, scales, _stages(json.loads((run.folder / SAE_CFG_FILENAME).read_text())["metadata"]))


def _left_out_of_inference(folder: Path, device: str) -> dict[str, torch.Tensor] | None:
    """What a finished run saved beside its canonical form; None for other folders."""
    file = folder / SPARSITY_FILENAME
    tensors = load_file(file, device) if file.is_file() else {}
    return tensors if CANONICAL_NORMS in tensors else None


def _stages(metadata: Mapping[str, Any]) -> list[str | None]:
    before = metadata.get("parent_stages") or []
    if not isinstance(before, list):
        raise DataError(f"The metadata of the crosscoder have parent_stages={before!r}, which is no list of names.")
    return [*cast("list[str | None]", before), metadata.get("stage")]
