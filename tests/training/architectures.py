"""All architectures at toy size, which the contract tests run over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_lens import TrainingSAE

from sae_lens_crosscoder import (
    BatchTopKTrainingCrosscoderConfig,
    GatedTrainingCrosscoderConfig,
    JumpReLUTrainingCrosscoderConfig,
    MatryoshkaBatchTopKTrainingCrosscoderConfig,
    StandardTrainingCrosscoderConfig,
    TopKTrainingCrosscoderConfig,
    TrainingCrosscoder,
)
from sae_lens_crosscoder._saelens import TrainCoefficientConfig, TrainStepInput, TrainStepOutput

ARCHITECTURES: dict[str, tuple[Any, dict[str, Any]]] = {
    "standard": (StandardTrainingCrosscoderConfig, {"l1_coefficient": 0.1}),
    "gated": (GatedTrainingCrosscoderConfig, {"l1_coefficient": 0.1}),
    "jumprelu-tanh": (
        JumpReLUTrainingCrosscoderConfig,
        {"l0_coefficient": 0.1, "jumprelu_init_log_threshold": -1.0, "pre_act_loss_coefficient": 0.01},
    ),
    "jumprelu-step": (
        JumpReLUTrainingCrosscoderConfig,
        {"l0_coefficient": 0.1, "jumprelu_init_log_threshold": -1.0, "sparsity_loss": "step"},
    ),
    "topk": (TopKTrainingCrosscoderConfig, {"k": 3}),
    "batchtopk": (BatchTopKTrainingCrosscoderConfig, {"k": 3}),
    "matryoshka": (MatryoshkaBatchTopKTrainingCrosscoderConfig, {"k": 3, "matryoshka_widths": [4, 8]}),
}
LAYOUTS = {"three hooks of one model": [8, 8, 8], "two models": [8, 8], "three widths": [5, 8, 11]}
N_LATENTS, N_TOKENS = 20, 40

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
every_layout = pytest.mark.parametrize("widths", LAYOUTS.values(), ids=LAYOUTS.keys())


def make(name: str, widths: list[int], seed: int = 0, **fields: Any) -> TrainingCrosscoder[Any]:
    torch.manual_seed(seed)
    config, own = ARCHITECTURES[name]
    values = {"dtype": "float64", "normalize_activations": "none", "decoder_init_norm": 0.5, **own, **fields}
    cfg = config(d_in=sum(widths), d_sae=N_LATENTS, source_widths=widths, **values)
    sae = TrainingSAE.from_dict(cfg.to_dict())
    assert isinstance(sae, TrainingCrosscoder)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        cfg.layout.clear_encoder_(sae.W_enc)
        cfg.layout.clear_decoder_(sae.W_dec)
        cfg.layout.tie_(sae.W_dec)
    return sae


def activations(widths: list[int], seed: int = 1) -> torch.Tensor:
    return torch.randn(N_TOKENS, sum(widths), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def step(sae: TrainingCrosscoder[Any], x: torch.Tensor, dead: torch.Tensor | None = None) -> TrainStepOutput:
    coefficients = {
        name: value.value if isinstance(value, TrainCoefficientConfig) else value
        for name, value in sae.get_coefficients().items()
    }
    mask = torch.zeros(N_LATENTS, dtype=torch.bool) if dead is None else dead
    return sae.training_forward_pass(TrainStepInput(x, coefficients, mask, 0, False))


def gradients(
    sae: TrainingCrosscoder[Any], x: torch.Tensor, dead: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    sae.zero_grad()
    step(sae, x, dead).loss.backward()
    return {n: p.grad.clone() if p.grad is not None else torch.zeros_like(p) for n, p in sae.named_parameters()}
