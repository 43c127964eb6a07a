"""Weights, inputs and outputs of other systems: codes, reconstructions and losses agree with theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import reference_checkpoint
from sae_lens import SAE

from sae_lens_crosscoder import (
    JumpReLUTrainingCrosscoder,
    JumpReLUTrainingCrosscoderConfig,
    StandardTrainingCrosscoder,
    StandardTrainingCrosscoderConfig,
    TopKTrainingCrosscoder,
    TopKTrainingCrosscoderConfig,
    TrainingCrosscoder,
)
from sae_lens_crosscoder._saelens import TrainStepInput
from sae_lens_crosscoder.hub import load_crosscoder

WIDTHS = [16] * 6  # two models at three hooks
CLASSES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "relu_l1": (StandardTrainingCrosscoder, StandardTrainingCrosscoderConfig, {}),
    "topk": (TopKTrainingCrosscoder, TopKTrainingCrosscoderConfig, {"k": 8, "decoder_norm": "none"}),
    "jumprelu_jan": (
        JumpReLUTrainingCrosscoder,
        JumpReLUTrainingCrosscoderConfig,
        {"l0_coefficient": 1.0, "tanh_scale": 4.0, "pre_act_loss_coefficient": 1.0},
    ),
}


def load(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def crosscode(name: str) -> tuple[TrainingCrosscoder[Any], dict[str, torch.Tensor]]:
    """crosscode's unfolded weights in our training class, and its inputs and outputs."""
    folder = reference_checkpoint("crosscode") / name
    stock = load_crosscoder(folder / "unfolded", scales=[1.0] * 6)  # in scaled units, as in training
    made, config, fields = CLASSES[name]
    sae = made(config(d_in=96, d_sae=64, source_widths=WIDTHS, **fields))
    state = sae.state_dict()
    state |= {name: stock.state_dict()[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    if name == "jumprelu_jan":
        state["log_threshold"] = stock.threshold.log()
    sae.load_state_dict(state)
    return sae.eval(), load(folder / "io.pt")


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_codes_and_reconstructions_are_those_of_crosscode(name: str) -> None:
    sae, io = crosscode(name)
    x = io["x_norm"].flatten(1)
    codes, pre_activations = sae.encode_with_hidden_pre(x)
    close(pre_activations, io["pre_acts"])
    close(codes, io["acts"])
    close(sae.decode(codes), io["recon"].flatten(1))
    close(sae.source_decoder_norms().sum(dim=-1), io["dec_norm_sum"])


@pytest.mark.parametrize("name", CLASSES)
def test_folded_scales_give_the_outputs_of_crosscodes_folded_weights(name: str, tmp_path: Path) -> None:
    sae, io = crosscode(name)
    x = io["x_raw"].flatten(1)
    sae.fold_activation_norm_scaling_factor(io["scale_MP"].flatten())
    close(sae.encode(x), io["folded_acts"])
    close(sae(x), io["folded_recon"].flatten(1))
    sae.save_inference_model(tmp_path)
    close(SAE.load_from_disk(tmp_path)(x), io["folded_recon"].flatten(1))


@pytest.mark.parametrize("name", CLASSES)
def test_losses_are_those_of_crosscode(name: str) -> None:
    sae, io = crosscode(name)
    step = TrainStepInput(io["x_norm"].flatten(1), {"l1": 1.0, "l0": 1.0}, torch.zeros(64, dtype=torch.bool), 0, False)
    losses = sae.train().training_forward_pass(step).losses
    close(losses["mse_loss"], io["loss_recon"])
    if name == "jumprelu_jan":
        close(losses["l0_loss"], io["loss_tanh"])
        close(losses["pre_act_loss"], io["loss_preact_on_preacts"])


def test_codes_and_reconstructions_are_those_of_antebe(tmp_path: Path) -> None:
    folder = reference_checkpoint("antebe") / "cc"
    io = load(folder / "io.pt")
    cfg = TopKTrainingCrosscoderConfig(d_in=32, d_sae=64, source_widths=[16, 16], k=8, decoder_norm="none")
    cfg.normalize_activations = "none"
    sae = TopKTrainingCrosscoder(cfg)
    sae.load_state_dict({**sae.state_dict(), **load_crosscoder(folder).state_dict()})
    x = io["x"].flatten(1)
    close(sae.encode(x), io["features"])
    close(sae(x), io["recon"].flatten(1))
    sae.save_inference_model(tmp_path)
    stock = SAE.load_from_disk(tmp_path)
    close(stock.encode(x), io["features"])
    close(stock(x), io["recon"].flatten(1))
