"""Kissane et al. 2024 (ckkissane/crosscoder-model-diff-replication): `cfg.json` and `cc_weights.pt`, or numbered pairs.

Source 0 is the base model, source 1 the fine-tuned one. The crosscoder takes activations times sqrt(width) / mean norm
of each model, and **the two factors are not in the files**: they have to be given.
"""

from __future__ import annotations

from sae_lens_crosscoder.hub.checked_files import CheckpointFolder
from sae_lens_crosscoder.hub.formats.checkpoint_format import CheckpointFormat
from sae_lens_crosscoder.hub.formats.four_tensors import NamedFiles, read_four, relu_crosscoder
from sae_lens_crosscoder.hub.options import UNKNOWN, ReadOptions
from sae_lens_crosscoder.hub.weights import CrosscoderWeights

_FILES = NamedFiles("cc_weights.pt", "cfg.json", key="hook_point")


def read(folder: CheckpointFolder, options: ReadOptions) -> CrosscoderWeights:
    """The crosscoder over raw activations."""
    weights, config_name = _FILES.in_folder(folder)
    config = folder.config(config_name)
    table, taken = read_four(folder, weights, config)
    n, d = table.size("sources"), table.size("d")
    scales = options.required_scales(
        n, "Crosscoders of Kissane et al. take activations scaled to mean norm sqrt(width)"
    )
    labels = ["base", "chat"] if n == 2 else [f"model_{i}" for i in range(n)]
    known = [{"label": label, "d_in": d, "hook_name": config.text("hook_point", UNKNOWN)} for label in labels]
    known[0]["model_name"] = config.text("model_name", UNKNOWN)
    return relu_crosscoder(taken, known, options, scales)


KISSANE = CheckpointFormat(
    "kissane", "cfg.json + cc_weights.pt, or <n>.pt + <n>_cfg.json", _FILES.are_in, read, frozenset({"scales"})
)
