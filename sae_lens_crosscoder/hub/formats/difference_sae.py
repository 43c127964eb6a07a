"""Diff-SAEs of science-of-finetuning: a BatchTopK SAE on the difference of two models' activations.

z = (x~ - b_dec) W_enc + b_enc with x~ the normalised difference, fine-tuned minus base; f = ReLU(z) where it is above
theta.
"""

from __future__ import annotations

from typing import Any

import torch

from sae_lens_crosscoder.errors import CheckpointError
from sae_lens_crosscoder.hub.checked_files import CheckpointFolder
from sae_lens_crosscoder.hub.formats.checkpoint_format import CheckpointFormat
from sae_lens_crosscoder.hub.formats.dictionary_learning import (
    batchtopk,
    dict_class,
    full_config,
    has_files,
    read_table,
    take_normaliser,
    take_threshold,
)
from sae_lens_crosscoder.hub.formats.hook_points import layer_output
from sae_lens_crosscoder.hub.options import ReadOptions
from sae_lens_crosscoder.hub.weights import CrosscoderWeights


def detect(folder: CheckpointFolder) -> bool:
    """Whether the folder has the files of science-of-finetuning, of a BatchTopKSAE."""
    return has_files(folder) and dict_class(folder).endswith("SAE")


def read(folder: CheckpointFolder, options: ReadOptions) -> CrosscoderWeights:
    """The SAE over the raw difference."""
    config = full_config(folder)
    if config.text("dict_class", "BatchTopKSAE") != "BatchTopKSAE":
        raise CheckpointError(
            f"{config.file} says the dictionary is a {config.values['dict_class']}: of SAEs only BatchTopKSAE is read."
        )
    table = read_table(folder)
    taken: dict[str, Any] = {
        "W_enc": table.take("encoder.weight", "latents", "d").T,
        "W_dec": table.take("decoder.weight", "d", "latents").T,
        "b_enc": table.take("encoder.bias", "latents"),
        "b_dec": table.take("b_dec", "d"),
    }
    config.check_size("activation_dim", table.size("d"))
    config.check_size("dict_size", table.size("latents"))
    activation = batchtopk(take_threshold(table), torch.ones(table.size("latents")))
    normaliser = take_normaliser(table)
    table.check_all_taken()
    labels = ["chat", "base"] if _is_base_minus_finetuned(folder, config.values) else ["base", "chat"]
    known = [{"label": label, "d_in": table.size("d"), "hook_name": layer_output(config)} for label in labels]
    return CrosscoderWeights(
        **taken,
        activation=activation,
        sources=options.joined_sources(known, "difference"),
        normaliser=normaliser,
        subtracts_b_dec=True,
    )


def _is_base_minus_finetuned(folder: CheckpointFolder, values: object) -> bool:
    """Whether a name says that the difference is the other way round; runs are called SAEdiff_ftb or SAEdiff_bft."""
    return "diff_bft" in f"{folder.path.name} {values}"


DIFFERENCE_SAE = CheckpointFormat(
    "science-of-finetuning-diff-sae",
    "config.json (dict_class BatchTopKSAE) + model.safetensors or model_final.pt",
    detect,
    read,
)
