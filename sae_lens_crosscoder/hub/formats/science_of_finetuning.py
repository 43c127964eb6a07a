"""Crosscoders of science-of-finetuning (Minder et al. 2025; crosscoder_learning): L1 and BatchTopK.

Source 0 is the base model, source 1 the fine-tuned one. z = sum_m x~^m W_enc^m + b_enc over the sources that the
encoder reads, f = ReLU(z); BatchTopK keeps f_j where f_j c_j > theta. The code normalisation says what c_j is. Codes
are the f_j that are decoded, not the f_j c_j that the system calls scaled.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from sae_lens_crosscoder.errors import CheckpointError
from sae_lens_crosscoder.hub.checked_files import CheckpointFolder
from sae_lens_crosscoder.hub.config_values import ConfigValues
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
from sae_lens_crosscoder.hub.tensor_table import TensorTable
from sae_lens_crosscoder.hub.weights import CrosscoderWeights, JumpReLU, ReLU

CODE_NORMALIZATIONS = {1: "CROSSCODER", 2: "SAE", 3: "MIXED", 4: "NONE", 5: "DECOUPLED"}


def detect(folder: CheckpointFolder) -> bool:
    """Whether the folder has the files, of a class that is no SAE."""
    return has_files(folder) and not dict_class(folder).endswith("SAE")


def read(folder: CheckpointFolder, options: ReadOptions) -> CrosscoderWeights:
    """The crosscoder over raw activations."""
    config = full_config(folder)
    if "latent_processor" in config:
        raise CheckpointError(
            f"{config.file} has a latent_processor ({config.values['latent_processor']!r:.60}): a function that "
            "changes the codes and is not saved, so no SAE can stand for this crosscoder."
        )
    table = read_table(folder)
    W_dec = table.take("decoder.weight", "sources", "latents", "d")
    W_enc = _encoder(table, config)
    taken: dict[str, Any] = {
        "W_enc": W_enc.flatten(0, 1),
        "W_dec": W_dec.movedim(0, 1).flatten(1),
        "b_enc": table.take("encoder.bias", "latents"),
        "b_dec": table.take("decoder.bias", "sources", "d").flatten(),
    }
    for key, dimension in {"activation_dim": "d", "dict_size": "latents", "num_layers": "sources"}.items():
        config.check_size(key, table.size(dimension))
    normalization = _code_normalization(table, config)
    activation = _activation(table, config, normalization, W_dec)
    normaliser = take_normaliser(table, "sources")
    table.check_all_taken()
    n = table.size("sources")
    labels = ["base", "chat"] if n == 2 else [f"model_{i}" for i in range(n)]
    known: list[dict[str, Any]] = [
        {"label": label, "d_in": table.size("d"), "hook_name": layer_output(config)} for label in labels
    ]
    return CrosscoderWeights(
        **taken,
        activation=activation,
        sources=options.joined_sources(known),
        normaliser=normaliser,
        facts={"code_normalization": normalization},
    )


def code_norms(W_dec: Tensor, normalization: str, config: ConfigValues) -> Tensor:
    """c_j, the norm by which a latent's activation is multiplied before selection.

    CROSSCODER: the sum over sources of |d_j^m|. SAE: the norm of the whole row. MIXED: alpha_sae SAE + alpha_cc
    CROSSCODER. NONE: 1.

    Args:
        W_dec: (sources, latents, width), as trained.
        normalization: Its name.
        config: The alphas of MIXED; 1.0 and 0.1 where it has none.
    """
    rows = W_dec.double()
    summed, joint = rows.norm(dim=-1).sum(dim=0), rows.movedim(0, 1).flatten(1).norm(dim=-1)
    match normalization:
        case "CROSSCODER":
            return summed
        case "SAE":
            return joint
        case "MIXED":
            alpha_sae = config.number("code_normalization_alpha_sae", 1.0)
            return alpha_sae * joint + config.number("code_normalization_alpha_cc", 0.1) * summed
        case _:
            return torch.ones_like(summed)


def _encoder(table: TensorTable, config: ConfigValues) -> Tensor:
    """The encoder with zeros for sources that it does not read (`encoder_layers`)."""
    W_enc = table.take("encoder.weight", "encoder sources", "d", "latents")
    n, n_read = table.size("sources"), table.size("encoder sources")
    read = config.items("encoder_layers") if "encoder_layers" in config else list(range(n))
    # True and 1.0 equal 1, but as indices they mean other things.
    are_sources = all(type(i) is int and 0 <= i < n for i in read)
    if not are_sources or not len(read) == len(set(read)) == n_read:
        raise CheckpointError(
            f"{table.file}: the encoder reads {n_read} sources and the decoder writes {n}, but encoder_layers is "
            f"{read}: it is unclear which are read."
        )
    whole = W_enc.new_zeros(n, *W_enc.shape[1:])
    whole[read] = W_enc
    return whole


def _code_normalization(table: TensorTable, config: ConfigValues) -> str:
    said = None
    if "code_normalization" in config:
        said = str(config.values["code_normalization"]).rpartition(".")[2].upper()
        said = {str(number): name for number, name in CODE_NORMALIZATIONS.items()}.get(said, said)
    if "code_normalization_id" in table:
        number = table.take_raw("code_normalization_id")
        name = None if number.is_complex() else CODE_NORMALIZATIONS.get(cast("int", number.item()))
        if name is None or said not in (None, name):
            raise CheckpointError(
                f"{table.file}: code_normalization_id is {number.tolist()} and the configuration says {said}: known "
                f"are {CODE_NORMALIZATIONS}, and both must agree, or thresholds would be wrong."
            )
        return name
    # Files from before there was a choice.
    name = said or "CROSSCODER"
    if name not in CODE_NORMALIZATIONS.values():
        raise CheckpointError(f"{config.file}: code_normalization {name!r} is none of {CODE_NORMALIZATIONS}.")
    return name


def _activation(table: TensorTable, config: ConfigValues, normalization: str, W_dec: Tensor) -> ReLU | JumpReLU:
    is_batchtopk = "threshold" in table
    named = config.text("dict_class", "?")
    # Forks have classes of other names, which say nothing.
    if (named == "CrossCoder" and is_batchtopk) or ("BatchTopK" in named and not is_batchtopk):
        raise CheckpointError(
            f"{config.file} says the crosscoder is a {named}, but {table.file} has {'a' if is_batchtopk else 'no'} "
            "threshold: the files do not belong together."
        )
    if not is_batchtopk and "k" in config:
        raise CheckpointError(f"{config.file} has a k, as BatchTopK has, but {table.file} has no threshold.")
    if not is_batchtopk:
        return ReLU()  # the code normalisation then scales nothing but the penalty
    if normalization == "DECOUPLED":
        raise CheckpointError(
            f"{table.file} is a BatchTopK crosscoder with DECOUPLED codes: each source selects by its own norm and "
            "threshold, so a latent may fire for one and not for the other. An SAE has one code a latent, so it cannot "
            "be written as one. Use science-of-finetuning's own code for it."
        )
    return batchtopk(take_threshold(table), code_norms(W_dec, normalization, config))


SCIENCE_OF_FINETUNING = CheckpointFormat(
    "science-of-finetuning",
    "config.json + model.safetensors, model_final.pt, checkpoint_<n>.pt or cc_weights.pt",
    detect,
    read,
)
