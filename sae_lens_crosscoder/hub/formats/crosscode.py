"""crosscode (Clive-Griffin): `model.pt` and `model_cfg.yaml`, models times hook points, usually folded.

Folded weights take raw activations and hold the factors beside them. Unfolded ones take scaled activations and hold no
factors: they have to be given. Its BatchTopK selects over a whole batch at inference too, which no SAE can do: it
needs a threshold. Its TopK has no ReLU, so that it differs from SAELens's where a token has fewer than k positive
pre-activations: SAELens gives 0 there, crosscode the negative value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sae_lens_crosscoder.errors import CheckpointError, ConfigError
from sae_lens_crosscoder.hub.checked_files import CheckpointFolder
from sae_lens_crosscoder.hub.config_values import ConfigValues
from sae_lens_crosscoder.hub.formats.checkpoint_format import CheckpointFormat
from sae_lens_crosscoder.hub.formats.four_tensors import readable_config
from sae_lens_crosscoder.hub.options import ReadOptions
from sae_lens_crosscoder.hub.tensor_table import TensorTable
from sae_lens_crosscoder.hub.weights import CrosscoderWeights, InputNormaliser, JumpReLU, ReLU, TopK

_FILES = ("model.pt", "model_cfg.yaml")


@dataclass(frozen=True)
class TensorNames:
    """What one version of the family calls its tensors."""

    encoder: str
    decoder: str
    encoder_bias: str | None
    """None for a crosscoder without."""
    decoder_bias: str | None
    factors: tuple[str, ...]
    log_threshold: str


CROSSCODE_NAMES = TensorNames(
    "_W_enc_XiDiL",
    "_W_dec_LXoDo",
    "b_enc_L",
    "_b_dec_XoDo",
    ("folded_scaling_factors_in_Xi", "folded_scaling_factors_out_Xo"),
    "_activation_fn.log_threshold_L",
)


def detect(folder: CheckpointFolder) -> bool:
    """Whether its two files are there, with a configuration that names an activation function."""
    config = model_config(folder)
    return config is not None and "activation_fn" in config


def model_config(folder: CheckpointFolder) -> ConfigValues | None:
    """The configuration beside the weights; None if the files are not there or it is damaged."""
    return readable_config(folder, "model_cfg.yaml") if folder.has(*_FILES) else None


def read(folder: CheckpointFolder, options: ReadOptions) -> CrosscoderWeights:
    """The crosscoder over raw activations."""
    config = folder.config("model_cfg.yaml")
    activation = config.below("activation_fn")
    classname, activation_config = activation.text("classname"), activation.below("cfg")
    names = CROSSCODE_NAMES
    if config.values.get("use_encoder_bias") is False:
        names = replace(names, encoder_bias=None)
    if config.values.get("use_decoder_bias") is False:
        names = replace(names, decoder_bias=None)
    table = TensorTable(str(folder.path / "model.pt"), folder.tensors("model.pt"), names.encoder)
    crosscoder = read_family(table, names, (classname, activation_config), options)
    config.check_size("n_latents", table.size("latents"))
    config.check_size("d_model", table.size("d"))
    return crosscoder


def read_family(
    table: TensorTable, names: TensorNames, activation: tuple[str, ConfigValues], options: ReadOptions
) -> CrosscoderWeights:
    """A crosscoder of crosscode or one of its ancestors.

    Args:
        table: The tensors.
        names: What they are called.
        activation: Class name of the activation function, and its configuration.
        options: What the caller says.

    Raises:
        CheckpointError: The files are damaged, or it cannot be one SAE.
    """
    W_enc = table.take(names.encoder, "*sources", "d", "latents")
    W_dec = table.take(names.decoder, "latents", "*sources", "d")
    b_enc, b_dec = W_enc.new_zeros(W_enc.shape[-1]), W_enc.new_zeros(W_enc.shape[:-1])
    if names.encoder_bias is not None:
        b_enc = table.take(names.encoder_bias, "latents")
    if names.decoder_bias is not None:
        b_dec = table.take(names.decoder_bias, "*sources", "d")
    folded = _folded_factors(table, names)
    function = _activation(table, names, activation, options)
    table.check_all_taken()
    dimensions, n = table.sizes["*sources"], table.size("*sources")
    if folded is not None and options.scales is not None:
        raise ConfigError(f"{table.file} has its activation scales folded in: leave out scales.")
    known = [
        {"label": label, "d_in": table.size("d"), "activation_scale": factor}
        for label, factor in zip(_labels(dimensions), folded or [1.0] * n, strict=True)
    ]
    unfolded = f"{table.file} is not folded, so it takes scaled activations"
    return CrosscoderWeights(
        W_enc=W_enc.flatten(0, -2),
        W_dec=W_dec.flatten(1),
        b_enc=b_enc,
        b_dec=b_dec.flatten(),
        activation=function,
        sources=options.joined_sources(known),
        normaliser=None if folded else InputNormaliser(options.required_scales(n, unfolded)),
    )


def _labels(dimensions: tuple[int, ...]) -> list[str]:
    """One label a source: models times hook points, or hook points of one model."""
    n = torch.Size(dimensions).numel()
    if len(dimensions) < 2 or dimensions[0] == 1:
        return [f"hook_{i}" for i in range(n)]
    per_model = n // dimensions[0]
    if per_model == 1:
        return [f"model_{i}" for i in range(n)]
    return [f"model_{i // per_model}.hook_{i % per_model}" for i in range(n)]


def _folded_factors(table: TensorTable, names: TensorNames) -> list[float] | None:
    """The factors that are folded into the weights; None if they are not folded."""
    factors = [table.take(name, "*sources").double().flatten() for name in names.factors if name in table]
    says = [bool(table.take_raw("is_folded").all())] if "is_folded" in table else []
    is_folded = says[0] if says else bool(factors) and all(bool((part > 0).all()) for part in factors)
    if not is_folded:
        return None
    if not factors or not all((part > 0).all() and torch.equal(part, factors[0]) for part in factors):
        raise CheckpointError(
            f"{table.file} says that its activation scales are folded in, but the factors it holds are "
            f"{[part.tolist() for part in factors]}: one positive factor a source is needed, the same for reading "
            "and writing."
        )
    return factors[0].tolist()


def _activation(
    table: TensorTable, names: TensorNames, activation: tuple[str, ConfigValues], options: ReadOptions
) -> ReLU | TopK | JumpReLU:
    classname, config = activation
    kind = classname.lower().removesuffix("activation")
    if kind.endswith("jumprelu"):
        return JumpReLU(table.take(names.log_threshold, "latents").double().exp())
    if kind == "batchtopk" and options.threshold is not None:
        return JumpReLU(torch.full((table.size("latents"),), float(options.threshold)))
    if kind == "batchtopk":
        raise CheckpointError(
            f"{table.file} uses {classname}, which selects over all tokens of a batch at inference too: a token's "
            "codes depend on its neighbours, so no SAE can give them. Pass threshold=..., the smallest pre-activation "
            "that it keeps on your data, to have latents fire above it."
        )
    if kind == "topk":
        return TopK(config.integer("k"))
    if kind == "relu":
        return ReLU()
    raise CheckpointError(
        f"{table.file} uses the activation {classname!r}, which no SAE of SAELens has. ReLU, TopK, JumpReLU and (with "
        "a threshold) BatchTopK are read."
    )


CROSSCODE = CheckpointFormat(
    "crosscode", "model.pt + model_cfg.yaml with activation_fn", detect, read, frozenset({"scales", "threshold"})
)
