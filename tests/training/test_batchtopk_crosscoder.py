from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import batchtopk_config, crosscoder, reference_checkpoint
from sae_lens import SAE, JumpReLUSAEConfig
from sae_lens.saes.sae import TrainStepInput

from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.hub import load_crosscoder
from sae_lens_crosscoder.training.batchtopk_crosscoder import BatchTopKTrainingCrosscoder

WIDTHS = (6, 10)
SLICES = [slice(0, 6), slice(6, 16)]


def step_input(x: torch.Tensor, dead: torch.Tensor | None = None, step: int = 0) -> TrainStepInput:
    return TrainStepInput(
        sae_in=x, coefficients={}, dead_neuron_mask=dead, n_training_steps=step, is_logging_step=False
    )


def batchtopk(d_sae: int = 24, **fields: Any) -> BatchTopKTrainingCrosscoder:
    sae = crosscoder("batchtopk", WIDTHS, d_sae, dtype="float64", **{"k": 3, **fields})
    assert isinstance(sae, BatchTopKTrainingCrosscoder)
    return sae.train()


def activations(n: int = 40) -> torch.Tensor:
    return torch.randn(n, 16, dtype=torch.float64)


def summed_norms(W_dec: torch.Tensor) -> torch.Tensor:
    return torch.stack([(W_dec[:, s] ** 2).sum(1).sqrt() for s in SLICES]).sum(0)


def dense_forward(
    x: torch.Tensor, w: dict[str, torch.Tensor], n_kept: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """p = ReLU(z), v = p c, the n_kept largest v of the batch stay (maths.md B2); one entry after the other."""
    p = (x @ w["W_enc"] + w["b_enc"]).clamp(min=0)
    v = (p * summed_norms(w["W_dec"])).detach()
    ranked = sorted(((v[i, j].item(), i, j) for i in range(v.shape[0]) for j in range(v.shape[1])), reverse=True)
    mask = torch.zeros_like(v)
    for _, i, j in ranked[:n_kept]:
        mask[i, j] = 1
    f = p * mask
    return p, f, torch.cat([f @ w["W_dec"][:, s] + w["b_dec"][s] for s in SLICES], dim=1)


def dense_loss(x: torch.Tensor, w: dict[str, torch.Tensor], k: int, alpha: float, dead: torch.Tensor) -> torch.Tensor:
    """Squared error summed over sources, and AuxK on the top min(d/2, n_dead) dead latents by score (Gao et al.)."""
    p, _, x_hat = dense_forward(x, w, k * len(x))
    loss = torch.stack([((x[:, s] - x_hat[:, s]) ** 2).sum(1) for s in SLICES]).sum(0).mean()
    residual = (x - x_hat).detach()
    c = summed_norms(w["W_dec"])
    n_dead = int(dead.sum())
    k_aux = min(x.shape[1] // 2, n_dead)
    aux = torch.zeros((), dtype=x.dtype)
    for i in range(len(x)):
        best = sorted((j for j in range(len(c)) if dead[j]), key=lambda j: -(p[i, j] * c[j]).item())[:k_aux]
        e_hat = sum((p[i, j] * w["W_dec"][j] for j in best), torch.zeros(16, dtype=x.dtype))
        aux = aux + ((residual[i] - e_hat) ** 2).sum() / len(x)
    return loss + alpha * min(n_dead / (x.shape[1] // 2), 1.0) * aux


# -------------------------------------------------------------------------------- codes and losses


def test_selection_of_a_batch_worked_out_by_hand():
    sae = crosscoder("batchtopk", (1, 1), 2, k=1)
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.W_dec.copy_(torch.tensor([[1.0, -1.0], [0.0, 10.0]]))
        sae.b_enc.zero_()
    x = torch.tensor([[4.0, 1.0], [3.0, 0.5]])
    # c = [2, 10]: scores [[8, 10], [6, 5]], of which the two largest are both in the first row.
    assert sae.train().encode(x).tolist() == [[4.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize("n_dead", [0, 3, 20])
def test_loss_and_gradients_are_those_of_an_independent_dense_implementation(n_dead: int):
    sae = batchtopk(aux_loss_coefficient=0.25)
    x, dead = activations(), torch.arange(24) < n_dead
    weights = {name: parameter.detach().clone().requires_grad_() for name, parameter in sae.named_parameters()}
    expected = dense_loss(x, weights, 3, 0.25, dead)
    expected.backward()
    output = sae.training_forward_pass(step_input(x, dead))
    output.loss.backward()
    torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=1e-12)
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-10, atol=1e-12, msg=name)


def test_the_auxiliary_loss_pulls_only_dead_latents_towards_the_residual():
    sae = batchtopk(aux_loss_coefficient=1.0)
    x, dead = activations(), torch.arange(24) < 4
    aux = sae.training_forward_pass(step_input(x, dead)).losses["auxiliary_reconstruction_loss"]
    aux.backward()
    assert sae.W_dec.grad is not None
    moved = sae.W_dec.grad.abs().sum(dim=1) > 0
    assert moved.tolist() == dead.tolist()


@pytest.mark.parametrize("dead", [None, torch.zeros(24, dtype=torch.bool)])
def test_without_dead_latents_there_is_no_auxiliary_loss(dead: torch.Tensor | None):
    losses = batchtopk().training_forward_pass(step_input(activations(), dead)).losses
    assert losses["auxiliary_reconstruction_loss"].item() == 0


def test_an_auxiliary_coefficient_of_zero_is_off():
    losses = (
        batchtopk(aux_loss_coefficient=0.0)
        .training_forward_pass(step_input(activations(), torch.ones(24, dtype=torch.bool)))
        .losses
    )
    assert losses["auxiliary_reconstruction_loss"].item() == 0


@pytest.mark.parametrize("k", [1, 2.5, 3])
def test_a_training_batch_keeps_k_codes_a_token_on_average(k: float):
    sae = batchtopk(k=k)
    assert (sae.encode(activations(40)) > 0).sum() == int(k * 40)


def test_codes_are_selected_over_batch_and_position_together():
    sae, x = batchtopk(), activations(40)
    assert torch.equal(sae.encode(x.reshape(5, 8, 16)).reshape(40, 24), sae.encode(x))


def test_codes_after_training_do_not_depend_on_the_batch():
    sae, x = batchtopk(), activations(40)
    sae.training_forward_pass(step_input(x))
    sae.eval()
    sae.topk_threshold.mul_(0.999)  # after one step a score is equal to it, and its side a matter of rounding
    torch.testing.assert_close(torch.cat([sae.encode(part) for part in x.split(7)]), sae.encode(x))


# ---------------------------------------------------------------------------------- the threshold


def test_the_threshold_is_the_bias_corrected_moving_average_of_the_smallest_kept_score():
    sae, rate = batchtopk(topk_threshold_lr=0.2), 0.2
    average, thresholds, smallest = 0.0, [], []
    for step in range(12):
        x = activations(8)
        weights = {name: p.detach() for name, p in sae.named_parameters()}
        p, f, _ = dense_forward(x, weights, 3 * 8)
        smallest.append((p * summed_norms(weights["W_dec"]))[f > 0].min().item())
        average = (1 - rate) * average + rate * smallest[-1]
        thresholds.append(average / (1 - (1 - rate) ** (step + 1)))
        sae.training_forward_pass(step_input(x, step=step))
        assert sae.topk_threshold.item() == pytest.approx(thresholds[-1], rel=1e-12)
    assert thresholds[0] == pytest.approx(smallest[0])
    assert len(set(smallest)) == 12


def test_spare_pairs_of_code_0_leave_the_threshold_alone():
    dense, sparse = batchtopk(), batchtopk()
    sparse.load_state_dict(dense.state_dict())
    acts = torch.zeros(3, 24, dtype=torch.float64)
    acts[0, 1], acts[2, 5] = 2.0, 3.0
    places = torch.tensor([[0, 1, 2], [1, 7, 5]])  # the second one is spare
    dense.update_topk_threshold(acts)
    pairs = torch.sparse_coo_tensor(places, acts[places[0], places[1]], (3, 24), check_invariants=True)
    sparse.update_topk_threshold(pairs.coalesce())
    assert torch.equal(sparse.topk_threshold, dense.topk_threshold)
    assert (dense.topk_threshold > 0).all()


def test_a_batch_without_a_code_says_nothing_about_the_threshold():
    sae = batchtopk()
    sae.training_forward_pass(step_input(activations()))
    before = sae.topk_threshold.item(), sae.topk_threshold_weight.item()
    sae.update_topk_threshold(torch.zeros(8, 24, dtype=torch.float64))
    assert (sae.topk_threshold.item(), sae.topk_threshold_weight.item()) == before


def test_saved_thresholds_are_theta_n_over_c(tmp_path: Path):
    sae = batchtopk()
    for step in range(3):
        sae.training_forward_pass(step_input(activations(), step=step))
    c = summed_norms(sae.W_dec)
    sae.fold_activation_norm_scaling_factor([0.3, 2.5])
    n = summed_norms(sae.W_dec)
    assert not torch.allclose(n, c)
    sae.save_inference_model(tmp_path)
    saved: Any = SAE.load_from_disk(tmp_path)
    assert isinstance(saved.cfg, JumpReLUSAEConfig)
    torch.testing.assert_close(saved.threshold.data, sae.topk_threshold * n / c, rtol=1e-12, atol=0)
    assert sae.topk_threshold > 0


def test_a_latent_that_writes_nothing_has_a_threshold_that_nothing_passes():
    sae = batchtopk()
    sae.training_forward_pass(step_input(activations()))
    with torch.no_grad():
        sae.W_dec[2] = 0
    thresholds = sae.latent_thresholds()
    assert thresholds[2] == torch.finfo(thresholds.dtype).max
    assert (thresholds[[0, 1, 3]] > 0).all()


def test_a_latent_that_writes_nothing_fires_in_the_saved_sae_as_in_training(tmp_path: Path):
    sae = batchtopk()
    sae.training_forward_pass(step_input(activations()))
    with torch.no_grad():
        sae.W_dec[2] = 0
    sae.eval().fold_activation_norm_scaling_factor(1.0)
    sae.save_inference_model(tmp_path)
    x = activations()
    assert (sae.encode(x)[:, 2] == 0).all()
    assert (SAE.load_from_disk(tmp_path).encode(x)[:, 2] == 0).all()


def test_saving_without_a_training_step_is_refused(tmp_path: Path):
    sae = batchtopk(normalize_activations="none")
    with pytest.raises(ConfigError, match=r"no inference threshold yet.*Train it for at least one step"):
        sae.save_inference_model(tmp_path)


# --------------------------------------------------------------------------------- configuration


def test_k_falls_linearly_and_stays():
    cfg = batchtopk_config(k=2, k_start=10.0, k_annealing_steps=4)
    assert [cfg.k_at(step) for step in range(6)] == [10, 8, 6, 4, 2, 2]


def test_without_annealing_k_is_k():
    assert [batchtopk_config(k=2).k_at(step) for step in (0, 1, 1000)] == [2, 2, 2]


def test_the_annealed_k_of_a_step_selects_its_codes():
    sae = batchtopk(k=1, k_start=5.0, k_annealing_steps=2)
    for step, k in enumerate([5, 3, 1, 1]):
        output = sae.training_forward_pass(step_input(activations(20), step=step))
        assert (output.feature_acts.to_dense() > 0).sum() == k * 20
        assert output.metrics["k"] == k


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 33}, "k=33.0 must be positive and at most the number of latents, d_sae=32"),
        ({"k": 0}, "k=0.0 must be positive"),
        ({"k": -1}, "k=-1.0 must be positive"),
        ({"k": float("nan")}, "k=nan must be positive"),
        ({"k_start": 40.0, "k_annealing_steps": 5}, "k_start=40.0 must be positive and at most .* d_sae=32"),
        ({"k_start": 8.0}, "k_start=8.0 differs from k=4.0, but k_annealing_steps=0: k would stay at k_start for ever"),
        ({"topk_threshold_lr": 0.0}, r"topk_threshold_lr=0.0 must lie in \(0, 1\]"),
        ({"topk_threshold_lr": 1.5}, "must lie in"),
    ],
)
def test_an_impossible_configuration_is_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        batchtopk_config(**fields)


def test_the_threshold_survives_training_in_bfloat16():
    sae = crosscoder("batchtopk", WIDTHS, 24, dtype="bfloat16", k=3).train()
    assert isinstance(sae, BatchTopKTrainingCrosscoder)
    for step in range(20):
        sae.training_forward_pass(step_input(activations().bfloat16(), step=step))
    assert sae.topk_threshold.dtype == torch.float64
    assert math.isfinite(sae.topk_threshold.item())
    assert sae.topk_threshold.item() > 0


# ------------------------------------------------------------------------------------ references


@pytest.mark.parametrize("name", ["sof_dl/batchtopk_crosscoder"])
def test_codes_and_reconstructions_are_those_of_the_published_batchtopk_crosscoder(name: str):
    folder = reference_checkpoint(name)
    io = torch.load(folder / "io.pt", weights_only=True)
    stock = load_crosscoder(folder / "hub").state_dict()
    sae = crosscoder("batchtopk", (16, 16), 64, k=8, normalize_activations="none")
    assert isinstance(sae, BatchTopKTrainingCrosscoder)
    sae.load_state_dict({**sae.state_dict(), **{name: stock[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}})
    sae.topk_threshold.fill_(io["threshold"].item())
    x = io["x_raw"].flatten(1)
    torch.testing.assert_close(sae.decoder_norms(), io["code_norm"][0])
    sae.train()
    torch.testing.assert_close(sae.encode(x), io["acts_batchtopk"])
    torch.testing.assert_close(sae(x), io["recon_batchtopk"].flatten(1))
    sae.eval()
    torch.testing.assert_close(sae.encode(x), io["acts_threshold"])
    torch.testing.assert_close(sae(x), io["recon_threshold"].flatten(1))
