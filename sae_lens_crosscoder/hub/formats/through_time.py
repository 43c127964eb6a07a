"""tom-pollak/crosscoder-through-time: `cc_weights.pt`, `cc_cfg.json` (or numbered pairs), a model at several times.

The crosscoder is that of Kissane et al. for any number of models. Whether each model's activations were multiplied by
sqrt(width) / mean norm before it is a setting of the training that the files do not hold.
"""

from __future__ import annotations

import warnings

from sae_lens_crosscoder.hub.checked_files import CheckpointFolder
from sae_lens_crosscoder.hub.formats.checkpoint_format import CheckpointFormat
from sae_lens_crosscoder.hub.formats.four_tensors import NamedFiles, read_four, relu_crosscoder
from sae_lens_crosscoder.hub.options import ReadOptions
from sae_lens_crosscoder.hub.weights import CrosscoderWeights

_FILES = NamedFiles("cc_weights.pt", "cc_cfg.json", key="n_models")


def read(folder: CheckpointFolder, options: ReadOptions) -> CrosscoderWeights:
    """The crosscoder over raw activations."""
    weights, config_name = _FILES.in_folder(folder)
    config = folder.config(config_name)
    if config_name != _FILES.config:
        config.integer("n_models")  # without it the pair is of Kissane et al. or of Nanda
    table, taken = read_four(folder, weights, config)
    n = table.size("sources")
    known = [{"label": f"model_{i}", "d_in": table.size("d")} for i in range(n)]
    scales = None
    if options.scales is not None:
        scales = options.required_scales(n, "Its activations were scaled")
    else:
        warnings.warn(
            f"{config_name} does not say whether activation scales were used in training: none are assumed. If there "
            "were, pass scales=[...], or codes and norms are wrong.",
            stacklevel=3,
        )
    return relu_crosscoder(taken, known, options, scales)


THROUGH_TIME = CheckpointFormat(
    "crosscoder-through-time", "cc_weights.pt + cc_cfg.json", _FILES.are_in, read, frozenset({"scales"})
)
