"""Stage-wise TinyStories (Soligo and Read 2025; crosscoders-feature-interactions): `model.pt` and `model_cfg.yaml`.

One model at several hook points, folded. **Training subtracted the mean activation of every position** where
`dataloader_means.pt` lies beside the weights; a mean of each position cannot be folded into an SAE, so the caller has
to subtract it.
"""

from __future__ import annotations

import warnings

from sae_lens_crosscoder.errors import CheckpointError
from sae_lens_crosscoder.hub.checked_files import CheckpointFolder
from sae_lens_crosscoder.hub.config_values import ConfigValues
from sae_lens_crosscoder.hub.formats.checkpoint_format import CheckpointFormat
from sae_lens_crosscoder.hub.formats.crosscode import TensorNames, model_config, read_family
from sae_lens_crosscoder.hub.options import ReadOptions
from sae_lens_crosscoder.hub.tensor_table import TensorTable
from sae_lens_crosscoder.hub.weights import CrosscoderWeights

_MEANS = "dataloader_means.pt"
_THRESHOLD = "hidden_activation.log_threshold_H"
_VERSIONS = (
    TensorNames("W_enc_XDH", "W_dec_HXD", "b_enc_H", "b_dec_XD", ("folded_scaling_factors_X",), _THRESHOLD),
    TensorNames("W_enc_MLDH", "W_dec_HMLD", "b_enc_H", "b_dec_MLD", ("folded_scaling_factors_ML",), _THRESHOLD),
)


def detect(folder: CheckpointFolder) -> bool:
    """Whether its two files are there, with a configuration that speaks of a hidden dimension."""
    config = model_config(folder)
    return config is not None and ("hidden_dim" in config or "hidden_activation_classname" in config)


def read(folder: CheckpointFolder, options: ReadOptions) -> CrosscoderWeights:
    """The crosscoder over raw activations (less their position's mean, if it was trained so)."""
    config = folder.config("model_cfg.yaml")
    file, tensors = str(folder.path / "model.pt"), folder.tensors("model.pt")
    names = next((v for v in _VERSIONS if any(name.endswith(v.encoder) for name in tensors)), None)
    if names is None:
        wanted = " or ".join(version.encoder for version in _VERSIONS)
        raise CheckpointError(f"{file} lacks the tensor {wanted}. It has {', '.join(sorted(tensors)[:8])}.")
    table = TensorTable(file, tensors, names.encoder)
    crosscoder = read_family(table, names, _activation(config), options)
    config.check_size("hidden_dim", table.size("latents"))
    config.check_size("d_model", table.size("d"))
    if _MEANS in folder.names:
        warnings.warn(
            f"{_MEANS} lies beside the weights: the crosscoder takes activations less the mean of their position, "
            "which no SAE can subtract. Subtract it from what you encode, and add it to reconstructions.",
            stacklevel=3,
        )
    return crosscoder


def _activation(config: ConfigValues) -> tuple[str, ConfigValues]:
    below = config.below("hidden_activation")
    if "classname" in below:
        return below.text("classname"), below.below("cfg")
    return config.text("hidden_activation_classname"), config.below("hidden_activation_cfg")


STAGEWISE = CheckpointFormat(
    "stagewise-tinystories",
    "model.pt + model_cfg.yaml with hidden_dim",
    detect,
    read,
    frozenset({"scales", "threshold"}),
)
