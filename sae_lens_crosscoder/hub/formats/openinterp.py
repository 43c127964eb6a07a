"""OpenInterpretability's paper-grade crosscoder: `crosscoder_final.safetensors` and `cfg.json`.

Activations are multiplied by `norm_scale_A` and `norm_scale_B` of the configuration, and the decoder bias is subtracted
before encoding: z = (x~ - b_dec) W_enc + b_enc, f_j = ReLU(z_j) where z_j > threshold_j.
"""

from __future__ import annotations

from sae_lens_crosscoder.errors import CheckpointError, ConfigError
from sae_lens_crosscoder.hub.checked_files import CheckpointFolder
from sae_lens_crosscoder.hub.config_values import ConfigValues
from sae_lens_crosscoder.hub.formats.checkpoint_format import CheckpointFormat
from sae_lens_crosscoder.hub.formats.four_tensors import take_four
from sae_lens_crosscoder.hub.formats.hook_points import layer_output
from sae_lens_crosscoder.hub.options import UNKNOWN, ReadOptions
from sae_lens_crosscoder.hub.tensor_table import TensorTable
from sae_lens_crosscoder.hub.weights import CrosscoderWeights, InputNormaliser, JumpReLU

_WEIGHTS = "crosscoder_final.safetensors"
_SCALES = ("norm_scale_A", "norm_scale_B")


def detect(folder: CheckpointFolder) -> bool:
    """Whether its weights file is there."""
    return folder.has(_WEIGHTS, "cfg.json")


def read(folder: CheckpointFolder, options: ReadOptions) -> CrosscoderWeights:
    """The crosscoder over raw activations."""
    config = folder.config("cfg.json")
    table = TensorTable(str(folder.path / _WEIGHTS), folder.tensors(_WEIGHTS), "W_enc")
    taken = take_four(table, config)
    thresholds = table.take("threshold", "latents")
    table.check_all_taken()
    config.check_size("d_model", table.size("d"))
    config.check_size("n_features", table.size("latents"))
    known = [
        {
            "label": label,
            "d_in": table.size("d"),
            "model_name": config.text(f"{label}_model", UNKNOWN),
            "hook_name": layer_output(config),
        }
        for label in ("base", "chat")
    ]
    return CrosscoderWeights(
        **taken,
        activation=JumpReLU(thresholds.clamp(min=0)),
        sources=options.joined_sources(known),
        normaliser=InputNormaliser(_scales(config, options)),
        subtracts_b_dec=True,
    )


def _scales(config: ConfigValues, options: ReadOptions) -> list[float]:
    if not any(key in config for key in _SCALES):
        return options.required_scales(2, f"{config.file} lacks {' and '.join(_SCALES)}")
    if options.scales is not None:
        raise ConfigError(f"{config.file} holds the activation scales itself: leave out scales.")
    scales = [config.number(key) for key in _SCALES]
    if min(scales) <= 0:
        raise CheckpointError(f"{config.file}: the activation scales {scales} must be positive.")
    return scales


OPENINTERP = CheckpointFormat(
    "openinterp", "crosscoder_final.safetensors + cfg.json", detect, read, frozenset({"scales"})
)
