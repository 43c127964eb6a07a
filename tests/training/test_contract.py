"""What every architecture has to keep, over one model at three hooks, two models, and three of different widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import N_LATENTS, activations, every_architecture, every_layout, gradients, make, step
from sae_lens import SAE, TrainingSAE

from sae_lens_crosscoder import BatchTopKTrainingCrosscoder, TrainingCrosscoder
from sae_lens_crosscoder.errors import ConfigError


def keep_off_the_threshold(sae: TrainingCrosscoder[Any]) -> None:
    """After one step the threshold is the smallest kept score itself, and which side it is on a matter of rounding."""
    if isinstance(sae, BatchTopKTrainingCrosscoder):
        sae.topk_threshold.mul_(0.999)


@every_architecture
@every_layout
def test_every_parameter_gets_a_gradient(name: str, widths: list[int]) -> None:
    dead = torch.zeros(N_LATENTS, dtype=torch.bool)
    dead[:4] = True
    for parameter, gradient in gradients(make(name, widths), activations(widths), dead).items():
        assert gradient.isfinite().all(), parameter
        assert gradient.abs().max() > 0, parameter


@pytest.mark.parametrize("name", ["standard", "gated", "topk", "batchtopk", "matryoshka"])
@every_layout
def test_the_gradient_is_that_of_finite_differences(name: str, widths: list[int]) -> None:
    # JumpReLU is left out: its straight-through gradient is no derivative.
    sae, x = make(name, widths), activations(widths)
    exact = gradients(sae, x)
    generator = torch.Generator().manual_seed(2)
    for parameter, weights in sae.named_parameters():
        direction = torch.randn(weights.shape, dtype=weights.dtype, generator=generator)
        losses: list[float] = []
        for sign in (1, -1):
            with torch.no_grad():
                weights.add_(sign * 1e-6 * direction)
                losses.append(step(sae, x).loss.item())
                weights.sub_(sign * 1e-6 * direction)
        numerical = (losses[0] - losses[1]) / 2e-6
        expected = (exact[parameter] * direction).sum().item()
        if name == "gated" and parameter in ("W_dec", "b_dec"):
            continue  # the decoder is held fixed in the gates' reconstruction
        assert numerical == pytest.approx(expected, rel=1e-4, abs=1e-6), parameter


@every_architecture
@every_layout
def test_a_checkpoint_comes_back_bit_for_bit(name: str, widths: list[int], tmp_path: Path) -> None:
    sae, x = make(name, widths), activations(widths)
    step(sae, x)
    sae.save_model(tmp_path)
    again = TrainingSAE.load_from_disk(tmp_path)
    assert type(again) is type(sae)
    for key, tensor in sae.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    assert torch.equal(again.eval().encode(x), sae.eval().encode(x))


@every_architecture
@every_layout
def test_the_saved_stock_sae_reconstructs_raw_activations_as_the_training_class(
    name: str, widths: list[int], tmp_path: Path
) -> None:
    sae, x = make(name, widths, normalize_activations="expected_average_only_in"), activations(widths)
    step(sae, x)
    sae.eval()
    keep_off_the_threshold(sae)
    scaled_codes, scaled_out = sae.encode(x), sae(x)
    scales = torch.linspace(0.5, 2.0, len(widths), dtype=torch.float64)
    columns = scales.repeat_interleave(torch.tensor(widths))
    sae.fold_activation_norm_scaling_factor(scales)
    raw = x / columns
    torch.testing.assert_close(sae.encode(raw), scaled_codes)
    torch.testing.assert_close(sae(raw) * columns, scaled_out)
    sae.save_inference_model(tmp_path)
    stock = SAE.load_from_disk(tmp_path)
    assert type(stock).__module__.startswith("sae_lens.")
    torch.testing.assert_close(stock(raw), sae(raw))
    torch.testing.assert_close(stock.encode(raw), scaled_codes * sae.canonical_norms())
    norms = torch.stack([part.norm(dim=-1) for part in stock.W_dec.split(widths, dim=-1)], dim=-1)
    units = scales if name == "topk" else torch.ones_like(scales)
    torch.testing.assert_close((norms * units).sum(dim=-1), torch.ones(N_LATENTS, dtype=torch.float64))


@pytest.mark.parametrize("decoder_norm", ["sum", "joint", "none"])
@every_architecture
def test_any_decoder_norm_survives_saving(name: str, decoder_norm: str, tmp_path: Path) -> None:
    widths = [8, 8]
    sae, x = make(name, widths, decoder_norm=decoder_norm), activations(widths)
    step(sae, x)
    sae.eval()
    keep_off_the_threshold(sae)
    expected = {
        "sum": sae.source_decoder_norms().sum(-1),
        "joint": sae.W_dec.norm(dim=-1),
        "none": torch.ones(N_LATENTS, dtype=torch.float64),
    }[decoder_norm]
    torch.testing.assert_close(sae.decoder_norms(), expected)
    sae.save_inference_model(tmp_path)
    torch.testing.assert_close(SAE.load_from_disk(tmp_path)(x), sae(x))


@every_architecture
@every_layout
def test_permuted_sources_and_latents_give_permuted_gradients(name: str, widths: list[int]) -> None:
    sae, x = make(name, widths), activations(widths)
    order = list(range(len(widths)))[::-1]
    starts = [sum(widths[:i]) for i in range(len(widths))]
    columns = torch.cat([torch.arange(starts[i], starts[i] + widths[i]) for i in order])
    latents = torch.arange(N_LATENTS)
    if name != "matryoshka":  # its latents have an order
        latents = torch.randperm(N_LATENTS, generator=torch.Generator().manual_seed(3))
    swapped = make(name, [widths[i] for i in order])
    with torch.no_grad():
        for key, weights in sae.named_parameters():
            dict(swapped.named_parameters())[key].copy_(permuted(weights, columns, latents))
    expected = {key: permuted(g, columns, latents) for key, g in gradients(sae, x).items()}
    for key, gradient in gradients(swapped, x[:, columns]).items():
        torch.testing.assert_close(gradient, expected[key], msg=key)


def permuted(weights: torch.Tensor, columns: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    for axis, size in enumerate(weights.shape):
        weights = weights.index_select(axis, columns if size == len(columns) else latents)
    return weights


@every_architecture
def test_the_difference_weighted_loss_is_its_formula_and_needs_two_equal_sources(name: str) -> None:
    x = activations([8, 8])
    losses: dict[float, float] = {}
    for weight in (0.0, -0.5, -1.0):
        sae = make(name, [8, 8], difference_weight=weight)
        output = step(sae, x)
        first, second = (output.sae_out - x).chunk(2, dim=-1)
        expected = (first**2 + second**2 + 2 * weight * first * second).sum(dim=-1).mean()
        torch.testing.assert_close(output.losses["mse_loss"], expected)
        losses[weight] = output.losses["mse_loss"].item()
    assert len(set(losses.values())) == 3
    with pytest.raises(ConfigError, match="compares two sources of equal width"):
        make(name, [5, 8, 11], difference_weight=-0.5)
    with pytest.raises(ConfigError, match=r"must lie in \[-1, 0\]"):
        make(name, [8, 8], difference_weight=0.5)


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka"])
def test_dead_latents_are_not_pulled_to_what_a_difference_weighted_loss_leaves_out(name: str) -> None:
    sae, x = make(name, [8, 8], difference_weight=-1.0), activations([8, 8])
    dead = torch.zeros(N_LATENTS, dtype=torch.bool)
    dead[:6] = True
    with torch.no_grad():  # dead latents write the same into both sources, and all of the residual is common to both
        sae.W_dec[:, 8:] = sae.W_dec[:, :8]
        sae.b_dec[8:] = sae.b_dec[:8]
    common = torch.cat([x[:, :8], x[:, :8]], dim=1)
    losses = step(sae, common, dead).losses
    assert losses["mse_loss"].item() == pytest.approx(0, abs=1e-12)
    assert losses["auxiliary_reconstruction_loss"].item() == pytest.approx(0, abs=1e-12)
