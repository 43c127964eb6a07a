"""Nanda 2024 (neelnanda-io/Crosscoders): `<name>.pt` and `<name>_cfg.json`, one model at all its layers.

Weights that were published under a name have the activation scales folded in. Training saves them unfolded, as
`version_<n>/<i>.pt`, without the factors: for those they have to be given.
"""

from __future__ import annotations

import warnings

from sae_lens_crosscoder.hub.checked_files import CheckpointFolder
from sae_lens_crosscoder.hub.formats.checkpoint_format import CheckpointFormat
from sae_lens_crosscoder.hub.formats.four_tensors import only_pair, pair_config, read_four, relu_crosscoder
from sae_lens_crosscoder.hub.options import UNKNOWN, ReadOptions
from sae_lens_crosscoder.hub.weights import CrosscoderWeights


def detect(folder: CheckpointFolder) -> bool:
    """Whether there is a pair whose configuration names a site and neither one hook point nor several models."""
    config = pair_config(folder)
    return config is not None and "site" in config and "hook_point" not in config and "n_models" not in config


def read(folder: CheckpointFolder, options: ReadOptions) -> CrosscoderWeights:
    """The crosscoder over raw activations."""
    weights, config_name = only_pair(folder)
    config = folder.config(config_name)
    table, taken = read_four(folder, weights, config)
    n = table.size("sources")
    scales = None
    if options.scales is not None or weights.removesuffix(".pt").isdigit():
        scales = options.required_scales(
            n, f"{weights} is a training checkpoint, whose activation scales are not folded"
        )
    else:
        warnings.warn(
            f"{weights} does not say whether activation scales are folded into it: it is taken to be, as published "
            "weights are. If it is not, pass scales=[...].",
            stacklevel=3,
        )
    hook = f"blocks.{{}}.hook_{config.text('site')}" if "site" in config else UNKNOWN
    model_name = config.text("model_name", UNKNOWN)
    known = [
        {"label": f"layer_{i}", "d_in": table.size("d"), "model_name": model_name, "hook_name": hook.format(i)}
        for i in range(n)
    ]
    return relu_crosscoder(taken, known, options, scales)


NANDA = CheckpointFormat("nanda", "<name>.pt + <name>_cfg.json with a site", detect, read, frozenset({"scales"}))
