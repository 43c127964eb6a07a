"""Antebe's (dedicated-feature) crosscoders of Qwen2.5-3B: `model.pt` and `config.json`.

**Source 0 is the fine-tuned model and source 1 the base**, the reverse of all other systems. z = x W_enc + b_enc, the k
largest ReLU(z) of every token fire. The decoder mask is applied, as their decoder does; the encoder mask is not, as in
their evaluation. Raw activations go in there too, although the card speaks of z-scored ones; training read only the
last token of every sample.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from sae_lens_crosscoder.errors import CheckpointError
from sae_lens_crosscoder.hub.checked_files import CheckpointFolder
from sae_lens_crosscoder.hub.formats.checkpoint_format import CheckpointFormat
from sae_lens_crosscoder.hub.formats.four_tensors import readable_config, take_four
from sae_lens_crosscoder.hub.options import ReadOptions
from sae_lens_crosscoder.hub.tensor_table import TensorTable
from sae_lens_crosscoder.hub.weights import CrosscoderWeights, TopK

_FILES = ("model.pt", "config.json")


def detect(folder: CheckpointFolder) -> bool:
    """Whether its two files are there, with a configuration that has a k."""
    if not folder.has(*_FILES):
        return False
    config = readable_config(folder, "config.json")
    return config is None or "k" in config


def read(folder: CheckpointFolder, options: ReadOptions) -> CrosscoderWeights:
    """The crosscoder over raw activations."""
    config = folder.config("config.json")
    table = TensorTable(str(folder.path / "model.pt"), folder.tensors("model.pt"), "W_enc")
    taken = take_four(table, config)
    config.check_size("activation_dim", table.size("d"))
    if "dec_mask" not in table and any(config.values.get(key) for key in ("n_a", "n_b")):
        raise CheckpointError(f"{config.file} speaks of exclusive latents, but {table.file} lacks their dec_mask.")
    if "dec_mask" in table:
        mask = _mask(table, "dec_mask", "latents", "sources")
        taken["W_dec"] = taken["W_dec"] * mask.repeat_interleave(table.size("d"), dim=1)
    if "enc_mask" in table:
        mask = _mask(table, "enc_mask", "sources", "latents")
        forbidden = taken["W_enc"] * (1 - mask).repeat_interleave(table.size("d"), dim=0)
        if forbidden.any():
            n = int(forbidden.any(dim=0).sum())
            warnings.warn(
                f"{n} latents read a source that their encoder mask forbids. The weights are taken as found, as in the "
                "authors' evaluation: codes are theirs, but these latents are not exclusive in what they read.",
                stacklevel=3,
            )
    table.check_all_taken()
    n = table.size("sources")
    labels = ["finetuned", "base"] if n == 2 else [f"model_{i}" for i in range(n)]
    known = [{"label": label, "d_in": table.size("d")} for label in labels]
    return CrosscoderWeights(**taken, activation=TopK(config.integer("k")), sources=options.joined_sources(known))


def _mask(table: TensorTable, name: str, *dimensions: str) -> Tensor:
    mask = table.take_raw(name, *dimensions)
    if mask.is_complex() or not torch.isin(mask.float(), torch.tensor([0.0, 1.0])).all():
        raise CheckpointError(f"{table.file}: {name} must hold zeros and ones, but holds other values too.")
    return mask.float()


ANTEBE = CheckpointFormat("antebe", "model.pt + config.json with k", detect, read)
