"""What every training architecture has to keep: one contract, and the parts that they share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import batchtopk_config, crosscoder, standard_config
from hypothesis import given
from hypothesis import strategies as st
from sae_lens import SAE, TrainingSAE
from sae_lens.saes.sae import TrainStepInput
from scipy.optimize import minimize

from sae_lens_crosscoder import TrainingCrosscoder
from sae_lens_crosscoder.errors import ConfigError, ShapeError
from sae_lens_crosscoder.training.batchtopk_crosscoder import BatchTopKTrainingCrosscoder
from sae_lens_crosscoder.training.geometric_median import geometric_median
from sae_lens_crosscoder.training.jumprelu_crosscoder import JumpReLUTrainingCrosscoderConfig
from sae_lens_crosscoder.training.standard_crosscoder import StandardTrainingCrosscoder

WIDTHS = (6, 10)
SCALES = [0.3, 2.5]

both = pytest.mark.parametrize("architecture", ["standard", "batchtopk"])


def step_input(x: torch.Tensor, dead: torch.Tensor | None = None, step: int = 0) -> TrainStepInput:
    return TrainStepInput(
        sae_in=x, coefficients={"l1": 0.7}, dead_neuron_mask=dead, n_training_steps=step, is_logging_step=False
    )


def trained(architecture: str, dtype: str = "float64", **fields: Any) -> TrainingCrosscoder[Any]:
    """A crosscoder of uneven widths after a few steps on scaled activations."""
    sae = crosscoder(architecture, WIDTHS, d_sae=20, dtype=dtype, **fields)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    sae.train()
    for step in range(5):
        loss = sae.training_forward_pass(step_input(activations(64, dtype=sae.dtype), step=step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return sae.eval()


def activations(n: int = 40, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, sum(WIDTHS), dtype=dtype)


def columns() -> torch.Tensor:
    """The activation scale of every column."""
    return torch.tensor(SCALES, dtype=torch.float64).repeat_interleave(torch.tensor(WIDTHS))


def norms_by_hand(W_dec: torch.Tensor) -> torch.Tensor:
    return torch.stack([W_dec[:, :6].square().sum(1).sqrt(), W_dec[:, 6:].square().sum(1).sqrt()], dim=1)


# ---------------------------------------------------------------------------------------- contract


@both
def test_a_training_crosscoder_comes_back_bit_for_bit_from_disk(architecture: str, tmp_path: Path):
    sae = trained(architecture)
    sae.fold_activation_norm_scaling_factor(SCALES)
    sae.cfg.metadata.sources = [{"label": "base"}]
    sae.save_model(tmp_path)
    loaded = TrainingSAE.load_from_disk(tmp_path).eval()
    assert type(loaded) is type(sae)
    assert loaded.cfg.to_dict() == sae.cfg.to_dict()
    state = sae.state_dict()
    assert loaded.state_dict().keys() == state.keys()
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name]), name
    x = activations()
    assert torch.equal(loaded.encode(x), sae.encode(x))


@both
def test_folding_activation_scales_changes_no_code_and_gives_raw_reconstructions(architecture: str):
    sae = trained(architecture)
    raw = activations()
    codes = sae.encode(raw * columns())
    reconstructions = sae.decode(codes) / columns()
    assert 0 < (codes > 0).sum() < codes.numel()
    sae.fold_activation_norm_scaling_factor(torch.tensor(SCALES))
    torch.testing.assert_close(sae.encode(raw), codes, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sae(raw), reconstructions, rtol=1e-6, atol=1e-6)
    assert sae.cfg.normalize_activations == "none"


@both
def test_the_saved_stock_sae_is_the_training_crosscoder_on_raw_activations(architecture: str, tmp_path: Path):
    sae = trained(architecture)
    sae.fold_activation_norm_scaling_factor(SCALES)
    sae.save_inference_model(tmp_path)
    saved = SAE.load_from_disk(tmp_path)
    assert type(saved).__module__.startswith("sae_lens.")
    raw = activations(200)
    codes, saved_codes = sae.encode(raw), saved.encode(raw)
    n_j = norms_by_hand(sae.W_dec).sum(dim=1)
    assert 0 < (codes > 0).sum() < codes.numel()
    torch.testing.assert_close(saved_codes, codes * n_j, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(saved.decode(saved_codes), sae.decode(codes), rtol=1e-10, atol=1e-12)


@both
def test_per_source_decoder_norms_of_the_saved_sae_sum_to_one(architecture: str, tmp_path: Path):
    sae = trained(architecture)
    sae.fold_activation_norm_scaling_factor(SCALES)
    shares = norms_by_hand(sae.W_dec)
    sae.save_inference_model(tmp_path)
    norms = norms_by_hand(SAE.load_from_disk(tmp_path).W_dec)
    torch.testing.assert_close(norms.sum(dim=1), torch.ones(20, dtype=torch.float64))
    torch.testing.assert_close(norms, shares / shares.sum(dim=1, keepdim=True))


@both
def test_saving_leaves_the_training_weights_as_they_are(architecture: str, tmp_path: Path):
    sae = trained(architecture)
    sae.fold_activation_norm_scaling_factor(SCALES)
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    sae.save_inference_model(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())


@both
def test_a_latent_that_writes_nothing_stays_finite_in_training_and_when_saved(architecture: str, tmp_path: Path):
    sae = trained(architecture)
    with torch.no_grad():
        sae.W_dec[3] = 0
        sae.W_dec[5, :6] = 0
    output = sae.train().training_forward_pass(step_input(activations(), dead=torch.arange(20) == 3))
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in sae.parameters())  # type: ignore[union-attr]
    sae.eval().fold_activation_norm_scaling_factor(SCALES)
    sae.save_inference_model(tmp_path)
    saved = SAE.load_from_disk(tmp_path)
    assert all(tensor.isfinite().all() for tensor in saved.state_dict().values())
    assert norms_by_hand(saved.W_dec).sum(dim=1)[3] == 0
    raw = activations()
    torch.testing.assert_close(saved(raw), sae(raw), rtol=1e-10, atol=1e-12)


@both
def test_every_parameter_gets_a_gradient(architecture: str):
    sae = crosscoder(architecture, WIDTHS, dtype="float64")
    sae.train().training_forward_pass(step_input(activations())).loss.backward()
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@both
def test_swapped_sources_and_weights_give_the_same_loss_and_swapped_gradients(architecture: str):
    sae = crosscoder(architecture, WIDTHS, dtype="float64")
    swapped = crosscoder(architecture, WIDTHS[::-1], dtype="float64")
    order = torch.cat([torch.arange(6, 16), torch.arange(6)])
    with torch.no_grad():
        swapped.W_enc.copy_(sae.W_enc[order])
        swapped.W_dec.copy_(sae.W_dec[:, order])
        swapped.b_enc.copy_(sae.b_enc)
        swapped.b_dec.copy_(sae.b_dec[order])
    x, dead = activations(), torch.arange(32) < 5
    losses = [s.train().training_forward_pass(step_input(b, dead)).loss for s, b in ((sae, x), (swapped, x[:, order]))]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=1e-12)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(swapped.W_dec.grad, sae.W_dec.grad[:, order], rtol=1e-10, atol=1e-12)  # type: ignore[index]
    torch.testing.assert_close(swapped.W_enc.grad, sae.W_enc.grad[order], rtol=1e-10, atol=1e-12)  # type: ignore[index]


@both
def test_permuted_latents_give_the_same_loss(architecture: str):
    sae = crosscoder(architecture, WIDTHS, dtype="float64").train()
    permuted = crosscoder(architecture, WIDTHS, dtype="float64").train()
    order, x = torch.randperm(32), activations()
    with torch.no_grad():
        for name in ("W_dec", "b_enc"):
            getattr(permuted, name).copy_(getattr(sae, name)[order])
        permuted.W_enc.copy_(sae.W_enc[:, order])
        permuted.b_dec.copy_(sae.b_dec)
    losses = [s.training_forward_pass(step_input(x)).loss.item() for s in (sae, permuted)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@both
def test_saving_before_the_scales_are_folded_is_refused(architecture: str, tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"still expects scaled activations.*Call fold_activation_norm_scaling_factor"
    ):
        trained(architecture).save_inference_model(tmp_path)


@both
def test_without_normalisation_there_is_nothing_to_fold(architecture: str, tmp_path: Path):
    sae = trained(architecture, normalize_activations="none")
    sae.save_inference_model(tmp_path)
    raw = activations()
    torch.testing.assert_close(SAE.load_from_disk(tmp_path)(raw), sae(raw), rtol=1e-10, atol=1e-12)


@both
def test_a_bias_that_is_subtracted_from_the_input_is_saved_so(architecture: str, tmp_path: Path):
    sae = trained(architecture, apply_b_dec_to_input=True)
    sae.fold_activation_norm_scaling_factor(SCALES)
    sae.save_inference_model(tmp_path)
    raw = activations()
    torch.testing.assert_close(SAE.load_from_disk(tmp_path)(raw), sae(raw), rtol=1e-10, atol=1e-12)


# ----------------------------------------------------------------------------- what they share


def test_decoder_norms_are_summed_over_sources():
    sae = crosscoder(widths=(2, 2), d_sae=2)
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor([[3.0, 4.0, 0.0, 1.0], [0.0, 0.0, 6.0, 8.0]]))
    assert sae.source_decoder_norms().tolist() == [[5.0, 1.0], [0.0, 10.0]]
    assert sae.decoder_norms().tolist() == [6.0, 10.0]
    assert sae.get_W_dec_norm().tolist() == [6.0, 10.0]


def test_decoder_norms_stay_those_of_training_after_folding():
    sae = crosscoder(widths=WIDTHS, dtype="float64")
    before = sae.decoder_norms()
    sae.fold_activation_norm_scaling_factor(SCALES)
    torch.testing.assert_close(sae.decoder_norms(), before, rtol=1e-12, atol=0)
    assert not torch.allclose(sae.get_W_dec_norm(), before)


def test_a_single_factor_folds_into_all_sources():
    one, both_sources = crosscoder(widths=WIDTHS), crosscoder(widths=WIDTHS)
    both_sources.load_state_dict(one.state_dict())
    one.fold_activation_norm_scaling_factor(0.5)
    both_sources.fold_activation_norm_scaling_factor([0.5, 0.5])
    assert torch.equal(one.W_dec, both_sources.W_dec)
    assert torch.equal(one.source_scales, both_sources.source_scales)


def test_another_number_of_factors_than_sources_is_refused():
    with pytest.raises(ShapeError, match="3 activation scales were given for 2 sources"):
        crosscoder().fold_activation_norm_scaling_factor([1.0, 2.0, 3.0])


@pytest.mark.parametrize("made", [StandardTrainingCrosscoder, BatchTopKTrainingCrosscoder])
def test_at_the_start_all_slices_have_the_stated_norm_and_the_encoder_is_the_decoder_transposed(made: Any):
    config = standard_config if made is StandardTrainingCrosscoder else batchtopk_config
    sae = made(config(d_in=16, source_widths=list(WIDTHS)))
    torch.testing.assert_close(norms_by_hand(sae.W_dec), torch.full((32, 2), 0.08))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert sae.W_enc.T.is_contiguous()  # as the sparse step reads it
    assert sae.W_enc.data_ptr() != sae.W_dec.data_ptr()
    assert sae.b_enc.count_nonzero() == sae.b_dec.count_nonzero() == 0
    directions = torch.nn.functional.normalize(sae.W_dec)
    assert (directions @ directions.T - torch.eye(32)).abs().max() < 0.95


def test_a_folded_run_can_be_started_with_rows_as_they_are_drawn():
    sae = StandardTrainingCrosscoder(standard_config(d_in=16, source_widths=list(WIDTHS), decoder_init_norm=None))
    assert norms_by_hand(sae.W_dec).std() > 0.1


@pytest.mark.parametrize("widths", [[6, 9], [16], [17, -1], [16, 0]])
def test_widths_that_do_not_add_up_are_refused(widths: list[int]):
    if sum(widths) == 16 and min(widths) > 0:
        StandardTrainingCrosscoder(standard_config(d_in=16, source_widths=widths))
        return
    with pytest.raises(ShapeError, match=r"d_in=16 is not the sum of the sources' widths"):
        standard_config(d_in=16, source_widths=widths)


def test_a_crosscoder_without_widths_is_refused():
    with pytest.raises(ShapeError, match="source_widths is empty: it is unknown which of the d_in=32 columns"):
        StandardTrainingCrosscoder(standard_config())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"normalize_activations": "layer_norm"}, "'layer_norm' is not defined per source. Use 'expected_average"),
        ({"normalize_activations": "constant_norm_rescale"}, "is not defined per source"),
        ({"b_dec_init": "mean"}, "b_dec_init='mean' is unknown. Use one of zeros, geometric_median"),
        ({"d_sae": 0}, "d_sae=0 must be a positive number"),
        ({"l1_coefficient": -1.0}, "l1_coefficient=.* must be 0 or more"),
        ({"l1_warm_up_steps": -1}, "l1_coefficient=.* must be 0 or more"),
    ],
)
def test_an_impossible_configuration_is_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        standard_config(**{"source_widths": [16, 16], **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparsity_loss": "l1"}, "sparsity_loss='l1' is unknown. Use one of tanh, step"),
        ({"jumprelu_bandwidth": 0.0}, "jumprelu_bandwidth=0.0 must be positive"),
        ({"tanh_scale": -4.0}, "tanh_scale=-4.0 must be positive"),
        ({"l0_coefficient": -1.0}, "l0_coefficient=-1.0 must be 0 or more"),
        ({"l0_warm_up_steps": -1}, "l0_warm_up_steps=-1 must be 0 or more"),
        ({"pre_act_loss_coefficient": float("nan")}, "pre_act_loss_coefficient=nan must be 0 or more"),
        ({"b_enc_firing_rate": 1.0}, "b_enc_firing_rate=1.0 must lie between 0 and 1"),
    ],
)
def test_an_impossible_jumprelu_configuration_is_refused(unchecked_types: None, fields: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        JumpReLUTrainingCrosscoderConfig(d_in=32, d_sae=64, source_widths=[16, 16], **fields)


def test_a_negative_weight_of_the_loss_of_dead_latents_is_refused():
    with pytest.raises(ConfigError, match=r"aux_loss_coefficient=-0\.1 must be 0 or more"):
        batchtopk_config(aux_loss_coefficient=-0.1)


# ------------------------------------------------------------------------------- geometric median


def test_the_geometric_median_of_points_on_a_line_is_their_median():
    points = torch.tensor([[0.0, 1.0], [2.0, 1.0], [3.0, 1.0], [50.0, 1.0], [60.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(geometric_median(points, 10_000, 1e-12), points[2], rtol=0, atol=1e-3)


@given(seed=st.integers(0, 500), n=st.integers(3, 12), d=st.integers(1, 4))
def test_the_geometric_median_is_the_one_that_an_independent_minimiser_finds(seed: int, n: int, d: int):
    points = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    points[0] = 40.0  # an outlier that moves the mean far away

    def total_distance(x: Any) -> float:
        return (points - torch.as_tensor(x)).norm(dim=1).sum().item()

    best = minimize(total_distance, points.median(dim=0).values.numpy(), method="Nelder-Mead", options={"xatol": 1e-8})
    ours = total_distance(geometric_median(points, max_steps=1000, tolerance=1e-10))
    assert ours <= best.fun * (1 + 1e-4)
    assert ours < total_distance(points.mean(dim=0))


def test_the_bias_starts_at_the_geometric_median_if_asked():
    x = torch.randn(100, 16) + 3
    sae = StandardTrainingCrosscoder(
        standard_config(d_in=16, source_widths=list(WIDTHS), b_dec_init="geometric_median")
    )
    sae.initialize_from_data(x)
    assert torch.equal(sae.b_dec, geometric_median(x))
    zeros = StandardTrainingCrosscoder(standard_config(d_in=16, source_widths=list(WIDTHS)))
    zeros.initialize_from_data(x)
    assert zeros.b_dec.count_nonzero() == 0
