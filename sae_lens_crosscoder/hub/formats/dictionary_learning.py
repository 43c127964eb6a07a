"""What the crosscoders and diff-SAEs of science-of-finetuning share: their files, configuration, normaliser, threshold.

Files: `model.safetensors`, `model_final.pt`, `checkpoint_<n>.pt` or `cc_weights.pt` beside `config.json` and perhaps
`trainer_config.json`. Older files have `_orig_mod.` in front of their names, and neither code normalisation nor
normaliser.
"""

from __future__ import annotations

import re
import warnings

import torch
from torch import Tensor

from sae_lens_crosscoder.errors import CheckpointError
from sae_lens_crosscoder.hub.checked_files import CheckpointFolder
from sae_lens_crosscoder.hub.config_values import ConfigValues
from sae_lens_crosscoder.hub.formats.four_tensors import readable_config
from sae_lens_crosscoder.hub.tensor_table import TensorTable
from sae_lens_crosscoder.hub.weights import InputNormaliser, JumpReLU, ReLU

_NAMED = ("model.safetensors", "model_final.pt", "cc_weights.pt")
_NUMBERED = re.compile(r"checkpoint_\d+\.pt")
_STATISTICS = ("activation_mean", "activation_std", "activation_global_scale", "target_rms")
_EPSILON = 1e-8


def weights_files(folder: CheckpointFolder) -> list[str]:
    """The weights files, the best first: the published file, the end of training, then training checkpoints."""
    if folder.chosen is not None:
        return [name for name in folder.names if name in (f"{folder.chosen}.pt", f"{folder.chosen}.safetensors")]
    named = [name for name in _NAMED if name in folder.names]
    return named[:1] or [name for name in folder.names if _NUMBERED.fullmatch(name)]


def has_files(folder: CheckpointFolder) -> bool:
    """Whether the folder has weights under these names, and a configuration that is no other system's."""
    if not weights_files(folder) or "config.json" not in folder.names:
        return False
    config = readable_config(folder, "config.json")
    return config is None or "activation_dim" in config or "trainer" in config or "dict_class" in config


def dict_class(folder: CheckpointFolder) -> str:
    """Name of the class that was saved, as far as the configuration says; else empty."""
    try:
        return full_config(folder).text("dict_class", "?").removesuffix("?")
    except CheckpointError:
        return ""


def full_config(folder: CheckpointFolder) -> ConfigValues:
    """The constructor's arguments, and what the trainer's configuration says beside them.

    Raises:
        CheckpointError: A file is damaged.
    """
    config = folder.config("config.json")
    config = config.over(config.below("trainer"))
    if "trainer_config.json" in folder.names:
        trainer = folder.config("trainer_config.json")
        config = config.over(trainer.below("trainer")).over(trainer)
    return config


def read_table(folder: CheckpointFolder) -> TensorTable:
    """The tensors of the one weights file.

    Raises:
        CheckpointError: There are several training checkpoints and none was named, or the file is damaged.
    """
    files = weights_files(folder)
    if len(files) != 1:
        raise CheckpointError(
            f"{folder.path} holds {len(files)} training checkpoints ({', '.join(files)}): name one as the id."
        )
    return TensorTable(str(folder.path / files[0]), folder.tensors(files[0]), "encoder.weight")


def take_normaliser(table: TensorTable, *source_dimensions: str) -> InputNormaliser | None:
    """X~ = (x - mean) g with g = target_rms / sqrt(sum of variances + 1e-8), undone by x~ / (g + 1e-8) + mean.

    Args:
        table: The tensors.
        source_dimensions: ("sources",) for a crosscoder, nothing for a diff-SAE.

    Raises:
        CheckpointError: Statistics that are incomplete, partly NaN or do not fit each other.
    """
    if not any(name in table for name in _STATISTICS):
        return None
    mean = table.take("activation_mean", *source_dimensions, "d", finite=False).double()
    std = table.take("activation_std", *source_dimensions, "d", finite=False).double()
    scales = table.take("activation_global_scale", *source_dimensions).double().reshape(-1)
    target_rms = table.take("target_rms").double()
    if mean.isnan().all() and std.isnan().all() and (scales == 1).all():
        return None
    expected = (target_rms / (std.square().sum(dim=-1) + _EPSILON).sqrt()).reshape(-1)
    finite = torch.isfinite(mean).all() and torch.isfinite(std).all()
    # Half-precision files keep three digits of each of them.
    if not finite or not (scales > 0).all() or not torch.allclose(scales, expected, rtol=0.02):
        raise CheckpointError(
            f"{table.file}: the normaliser's mean, deviation and scale do not fit each other (scale {scales.tolist()}, "
            f"from the deviation {expected.tolist()}): the file is damaged, or its normaliser is of another kind."
        )
    return InputNormaliser(scales.tolist(), mean.flatten(), (1 / (scales + _EPSILON)).tolist())


def take_threshold(table: TensorTable) -> float:
    """The BatchTopK threshold; latents fire at inference if their scaled activation is above it.

    Raises:
        CheckpointError: There are several, or it is not finite.
    """
    table.leave_out(["k"])
    threshold = table.take("threshold", "*thresholds").double().flatten()
    if threshold.numel() != 1:
        raise CheckpointError(f"{table.file}: the threshold is {threshold.tolist()}, but must be one number.")
    return threshold.item()


def batchtopk(threshold: float, norms: Tensor) -> JumpReLU | ReLU:
    """BatchTopK at inference, f_j = ReLU(z_j) where c_j ReLU(z_j) > theta, as JumpReLU thresholds theta / c_j.

    A latent without norm (c_j = 0) never fires. A negative theta is that of a run that ended before it was measured:
    every positive latent fires.

    Args:
        threshold: Theta.
        norms: c_j of the weights as they were trained, before any scale is folded in.
    """
    if threshold < 0:
        warnings.warn(
            f"The BatchTopK threshold is {threshold}: training ended before it was measured, so every positive latent "
            "fires, as in the system itself.",
            stacklevel=3,
        )
        return ReLU()
    largest = torch.finfo(torch.float32).max
    return JumpReLU((threshold / norms.double()).nan_to_num(nan=largest, posinf=largest).clamp(max=largest))
