from __future__ import annotations

import json

import pytest
import torch
from helpers import crosscoder, reference_checkpoint, standard_config
from sae_lens import StandardSAEConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.training.optim import CoefficientScheduler

from sae_lens_crosscoder.hub import load_crosscoder
from sae_lens_crosscoder.training.standard_crosscoder import StandardTrainingCrosscoder

WIDTHS = (6, 10)


def step_input(x: torch.Tensor, l1: float) -> TrainStepInput:
    return TrainStepInput(
        sae_in=x, coefficients={"l1": l1}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
    )


def dense_loss(x: torch.Tensor, weights: dict[str, torch.Tensor], l1: float) -> torch.Tensor:
    """Kissane et al.: E sum_m |x^m - x_hat^m|^2 + lambda E sum_j f_j sum_m |d_j^m|, source by source (maths.md B1)."""
    slices = [slice(0, 6), slice(6, 16)]
    z = sum(torch.einsum("nd,dj->nj", x[:, s], weights["W_enc"][s]) for s in slices) + weights["b_enc"]
    f = z.clamp(min=0)
    squared = torch.zeros(len(x), dtype=x.dtype)
    penalty = torch.zeros(len(x), dtype=x.dtype)
    for s in slices:
        x_hat = torch.einsum("nj,jd->nd", f, weights["W_dec"][:, s]) + weights["b_dec"][s]
        squared = squared + ((x[:, s] - x_hat) ** 2).sum(1)
        penalty = penalty + (f * (weights["W_dec"][:, s] ** 2).sum(1).sqrt()).sum(1)
    return squared.mean() + l1 * penalty.mean()


def test_the_loss_of_two_latents_worked_out_by_hand():
    sae = crosscoder(widths=(1, 1), d_sae=2)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        sae.W_dec.copy_(torch.tensor([[2.0, -1.0], [0.5, 0.5]]))
        sae.b_enc.zero_()
        sae.b_dec.copy_(torch.tensor([0.0, 1.0]))
    output = sae.training_forward_pass(step_input(torch.tensor([[3.0, 2.0], [-1.0, -4.0]]), l1=0.1))
    # f = [[3, 0], [0, 4]]; x_hat = [[6, -2], [2, 3]]; e = [[-3, 4], [-3, -7]]: |e|^2 = 25, 58
    # c = [3, 1]; sum f c = 9, 4
    assert output.feature_acts.tolist() == [[3.0, 0.0], [0.0, 4.0]]
    assert output.losses["mse_loss"].item() == pytest.approx(41.5)
    assert output.losses["l1_loss"].item() == pytest.approx(0.65)
    assert output.loss.item() == pytest.approx(42.15)


def test_loss_and_gradients_are_those_of_an_independent_dense_implementation():
    sae = crosscoder(widths=WIDTHS, dtype="float64")
    x = torch.randn(50, 16, dtype=torch.float64)
    weights = {name: parameter.detach().clone().requires_grad_() for name, parameter in sae.named_parameters()}
    expected = dense_loss(x, weights, l1=0.7)
    expected.backward()
    loss = sae.train().training_forward_pass(step_input(x, l1=0.7)).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    assert set(weights) == {"W_enc", "W_dec", "b_enc", "b_dec"}
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-10, atol=1e-12, msg=name)


def test_the_penalty_pulls_decoder_norms_down():
    sae = crosscoder(widths=WIDTHS, dtype="float64")
    x = torch.randn(50, 16, dtype=torch.float64)
    with_penalty, without = (dict[str, torch.Tensor](), dict[str, torch.Tensor]())
    for grads, l1 in ((with_penalty, 1.0), (without, 0.0)):
        sae.zero_grad()
        sae.training_forward_pass(step_input(x, l1)).loss.backward()
        grads.update({name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None})
    of_penalty = with_penalty["W_dec"] - without["W_dec"]
    assert ((of_penalty * sae.W_dec).sum(dim=1) > 0).all()


def test_the_l1_coefficient_rises_linearly_over_its_warm_up():
    sae = StandardTrainingCrosscoder(standard_config(source_widths=[16, 16], l1_coefficient=2.0, l1_warm_up_steps=4))
    coefficient = sae.get_coefficients()["l1"]
    assert not isinstance(coefficient, float)
    scheduler = CoefficientScheduler(coefficient.warm_up_steps, coefficient.value)
    values = []
    for _ in range(6):
        values.append(scheduler.value)
        scheduler.step()
    assert values[-1] == 2.0
    assert values[:4] == sorted(values[:4])
    assert values[0] < 2.0


def test_outside_a_run_there_is_no_warm_up():
    coefficient = StandardTrainingCrosscoder(standard_config(source_widths=[16, 16])).get_coefficients()["l1"]
    assert not isinstance(coefficient, float)
    assert (coefficient.value, coefficient.warm_up_steps) == (2.0, 0)


def test_it_is_saved_as_saelens_own_standard_sae():
    config = standard_config(source_widths=[16, 16])
    assert config.architecture() == "standard_crosscoder"
    assert config.get_inference_config_class() is StandardSAEConfig


def test_codes_and_reconstructions_are_those_of_the_published_relu_crosscoder():
    folder = reference_checkpoint("sof_dl/relu_crosscoder")
    io = torch.load(folder / "io.pt", weights_only=True)
    assert json.loads((folder / "meta.json").read_text())["code_normalization"] == "CROSSCODER"
    sae = crosscoder(widths=(16, 16), d_sae=64, normalize_activations="none")
    sae.load_state_dict({**sae.state_dict(), **load_crosscoder(folder / "hub").state_dict()})
    x = io["x_raw"].flatten(1)
    torch.testing.assert_close(sae.encode(x), io["acts"])
    torch.testing.assert_close(sae(x), io["recon"].flatten(1))
    torch.testing.assert_close(sae.decoder_norms(), io["code_norm"][0])
    output = sae.training_forward_pass(step_input(x, l1=1.0))
    torch.testing.assert_close(output.losses["l1_loss"], io["loss_sparsity_loss"])
