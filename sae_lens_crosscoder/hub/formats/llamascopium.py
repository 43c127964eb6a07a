"""Llamascopium (OpenMOSS/Language-Model-SAEs): `config.json` (sae_type "crosscoder") and `sae_weights.safetensors`.

Every head h (a hook point) has codes of its own: f^h = sigma(z |d^h|) / |d^h| with z = sum_h x~^h W_E^h + b_E^h and
x~^h = x^h sqrt(d_model) / (average norm of h). They are one SAE's codes only where all heads agree:

- ReLU: f^h = ReLU(z) for every head, whatever the norms;
- JumpReLU: f^h = z where z > theta_j / |d_j^h|, so the norms of a latent must be equal in all heads;
- TopK: heads select by z_j |d_j^h|, so all norms must be equal;
- BatchTopK selects over a whole batch.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from sae_lens_crosscoder.errors import CheckpointError
from sae_lens_crosscoder.hub.checked_files import CheckpointFolder
from sae_lens_crosscoder.hub.config_values import ConfigValues
from sae_lens_crosscoder.hub.formats.checkpoint_format import CheckpointFormat
from sae_lens_crosscoder.hub.formats.four_tensors import readable_config
from sae_lens_crosscoder.hub.options import ReadOptions
from sae_lens_crosscoder.hub.tensor_table import TensorTable
from sae_lens_crosscoder.hub.weights import CrosscoderWeights, InputNormaliser, JumpReLU, ReLU, TopK

_WEIGHTS = "sae_weights.safetensors"
_NORM = "dataset_average_activation_norm."
_SAME = 1e-6


def detect(folder: CheckpointFolder) -> bool:
    """Whether there is a configuration of a dictionary of theirs, and weights or a distributed checkpoint."""
    if "config.json" not in folder.names:
        return False
    config = readable_config(folder, "config.json")
    return config is not None and "sae_type" in config


def read(folder: CheckpointFolder, options: ReadOptions) -> CrosscoderWeights:
    """The crosscoder over raw activations."""
    config = folder.config("config.json")
    if config.text("sae_type") != "crosscoder":
        raise CheckpointError(f"{config.file} says sae_type={config.values['sae_type']!r}: only crosscoders are read.")
    if not folder.has(_WEIGHTS):
        raise CheckpointError(
            f"{folder.path} has no {_WEIGHTS}. Distributed checkpoints (.dcp) are pickled in parts and are not read: "
            "save it as safetensors with Llamascopium."
        )
    table = TensorTable(str(folder.path / _WEIGHTS), folder.tensors(_WEIGHTS), "W_E")
    W_dec = table.take("W_D", "heads", "latents", "d")
    taken: dict[str, Any] = {
        "W_enc": table.take("W_E", "heads", "d", "latents").flatten(0, 1),
        "W_dec": W_dec.movedim(0, 1).flatten(1),
        "b_enc": table.take("b_E", "heads", "latents").double().sum(dim=0),
        "b_dec": table.take("b_D", "heads", "d").flatten(),
    }
    config.check_size("d_model", table.size("d"))
    hooks = _hooks(config, table)
    normaliser = _normaliser(table, config, hooks)
    norms = W_dec.double().norm(dim=-1)
    if config.values.get("sparsity_include_decoder_norm") is False:
        norms = torch.ones_like(norms)
    activation = _activation(table, config, norms)
    table.check_all_taken()
    known = [
        {"label": f"{i}.{re.sub('[^A-Za-z0-9_.-]', '_', hook)}", "d_in": table.size("d"), "hook_name": hook}
        for i, hook in enumerate(hooks)
    ]
    return CrosscoderWeights(
        **taken, activation=activation, sources=options.joined_sources(known), normaliser=normaliser
    )


def _hooks(config: ConfigValues, table: TensorTable) -> list[str]:
    hooks = config.items("hook_points")
    if len(hooks) != table.size("heads") or not all(isinstance(hook, str) and hook for hook in hooks):
        raise CheckpointError(
            f"{config.file} has hook_points {hooks}, but {table.file} has {table.size('heads')} heads: one name a head."
        )
    return hooks


def _normaliser(table: TensorTable, config: ConfigValues, hooks: list[str]) -> InputNormaliser | None:
    kind = config.text("norm_activation", "dataset-wise")
    if kind == "inference":
        # Folded into the biases by Llamascopium itself; the norms stay in the file and are not applied again.
        table.leave_out(f"{_NORM}{hook}" for hook in hooks)
        return None
    if kind != "dataset-wise":
        raise CheckpointError(
            f"{config.file} has norm_activation={kind!r}: every token or batch is divided by its own norm, which is "
            "not linear and cannot be folded into an SAE."
        )
    width = table.size("d")
    norms = {hook: float(table.take(f"{_NORM}{hook}")) for hook in dict.fromkeys(hooks)}
    if min(norms.values()) <= 0:
        raise CheckpointError(f"{table.file}: the average activation norms {norms} must be positive.")
    return InputNormaliser([math.sqrt(width) / norms[hook] for hook in hooks])


def _activation(table: TensorTable, config: ConfigValues, norms: Tensor) -> ReLU | TopK | JumpReLU:
    function = config.text("act_fn").lower()
    if function == "relu":
        return ReLU()
    if function == "jumprelu":
        log_thresholds = table.take("activation_function.log_jumprelu_threshold", "latents").double()
        if _differ(norms, norms[:1]):
            raise _per_head("JumpReLU compares z times the head's decoder norm with the threshold", table)
        return JumpReLU(log_thresholds.exp() / norms[0])
    if function == "topk":
        if _differ(norms, norms[:1, :1]):
            raise _per_head("TopK selects by z times the head's decoder norm", table)
        return TopK(config.integer("top_k"))
    if function == "batchtopk":
        raise CheckpointError(
            f"{table.file} is a BatchTopK crosscoder: it selects over all tokens of a batch and for each head by its "
            "own norms, which no SAE can do. Convert it to JumpReLU with Llamascopium."
        )
    raise CheckpointError(f"{config.file} has act_fn={function!r}, which no SAE of SAELens has.")


def _differ(norms: Tensor, reference: Tensor) -> bool:
    return not torch.allclose(norms, reference.expand_as(norms), rtol=_SAME, atol=0) or bool((norms == 0).any())


def _per_head(why: str, table: TensorTable) -> CheckpointError:
    return CheckpointError(
        f"{table.file}: {why}, and the norms differ, so that a latent can fire in one head and not in another. An SAE "
        "has one code a latent, so this crosscoder cannot be written as one. Use Llamascopium for it."
    )


LLAMASCOPIUM = CheckpointFormat("llamascopium", "config.json with sae_type + sae_weights.safetensors", detect, read)
