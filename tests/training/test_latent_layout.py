"""Shared, exclusive and encoder-subset latents: what is fixed before training holds to the last bit until the end."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import N_LATENTS, activations, every_architecture, gradients, make, step
from helpers import batchtopk_config, run_config, standard_config, tiny_pair, token_dataset
from sae_lens import SAE
from safetensors.torch import load_file

from sae_lens_crosscoder import (
    BatchTopKTrainingCrosscoder,
    CrosscoderTrainingRunner,
    StandardTrainingCrosscoderConfig,
    TrainingCrosscoder,
)
from sae_lens_crosscoder.errors import ConfigError, ShapeError
from sae_lens_crosscoder.training.latent_layout import LatentLayout

LAYOUTS: dict[str, tuple[list[int], dict[str, Any]]] = {
    "shared": ([8, 8], {"n_shared_latents": 6}),
    "exclusive": ([5, 8, 11], {"n_exclusive_latents": [3, 0, 4]}),
    "shared and exclusive": ([8, 8], {"n_shared_latents": 4, "n_exclusive_latents": [3, 5]}),
    "encoder reads one": ([5, 8, 11], {"encoder_sources": [1]}),
}
every_designation = pytest.mark.parametrize(("widths", "fields"), LAYOUTS.values(), ids=LAYOUTS.keys())


def fields_of(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The layout; prefixes reach beyond the exclusive latents, so that they can write every source."""
    return {**fields, "matryoshka_widths": [16]} if name == "matryoshka" else fields


def forbidden(sae: TrainingCrosscoder[Any]) -> dict[str, torch.Tensor]:
    """Which entries of the weights have to be 0, worked out entry by entry."""
    cfg = sae.cfg
    owners: list[int | None] = [None] * cfg.n_shared_latents
    for source, n in enumerate(cfg.n_exclusive_latents):
        owners += [source] * n
    owners += [None] * (cfg.d_sae - len(owners))
    source_of_column = [s for s, width in enumerate(cfg.source_widths) for _ in range(width)]
    elsewhere = torch.tensor([[owner not in (None, s) for s in source_of_column] for owner in owners])
    unread = torch.tensor([bool(cfg.encoder_sources) and s not in cfg.encoder_sources for s in source_of_column])
    return {"W_enc": (elsewhere | unread).T, "W_dec": elsewhere}


def assert_held(sae: TrainingCrosscoder[Any], optimizer: torch.optim.Adam) -> None:
    for name, mask in forbidden(sae).items():
        weights: torch.nn.Parameter = getattr(sae, name)
        assert weights.grad is not None
        state = optimizer.state[weights]
        for tensor in (weights, weights.grad, state["exp_avg"], state["exp_avg_sq"]):
            assert (tensor[mask] == 0).all(), name
            assert (tensor[~mask] != 0).any(), name
    n_shared = sae.cfg.n_shared_latents
    if n_shared:
        assert sae.W_dec.grad is not None
        for tensor in (sae.W_dec.grad, sae.W_dec):
            first, *others = tensor[:n_shared].chunk(len(sae.cfg.source_widths), dim=1)
            for other in others:
                assert torch.equal(first, other)


def train(sae: TrainingCrosscoder[Any], n_steps: int, seed: int = 1) -> Iterator[torch.optim.Adam]:
    optimizer = torch.optim.Adam(sae.parameters(), lr=0.02)
    dead = torch.zeros(N_LATENTS, dtype=torch.bool)
    dead[-3:] = True
    for i in range(n_steps):
        optimizer.zero_grad()
        step(sae, activations(sae.cfg.source_widths, seed + i).to(sae.dtype), dead).loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        yield optimizer


@every_architecture
@every_designation
def test_the_layout_holds_in_weights_gradients_and_adam_moments_through_training(
    name: str, widths: list[int], fields: dict[str, Any]
) -> None:
    sae = make(name, widths, **fields_of(name, fields), dtype="float32")
    for optimizer in train(sae, 8):
        assert_held(sae, optimizer)


@pytest.mark.parametrize("replace", ["load", "copy"])
def test_the_layout_holds_after_weights_were_loaded_or_the_crosscoder_was_copied(replace: str) -> None:
    sae = make("standard", [8, 8], n_shared_latents=4, n_exclusive_latents=[3, 5])
    for _ in train(sae, 2):
        pass
    if replace == "copy":
        sae = copy.deepcopy(sae)
    else:
        sae.load_state_dict({name: tensor.clone() for name, tensor in sae.state_dict().items()}, assign=True)
    for optimizer in train(sae, 3, seed=9):
        assert_held(sae, optimizer)


def test_shared_rows_get_the_gradient_of_the_one_row_that_they_are() -> None:
    sae, x = make("standard", [8, 8], n_shared_latents=6), activations([8, 8])
    of_rows = gradients(sae, x)["W_dec"][:6, :8]
    one = sae.W_dec.detach()[:6, :8].clone().requires_grad_()
    own = sae.W_dec.detach()[6:]
    W_dec = torch.cat([torch.cat([one, one], dim=1), own])
    f = torch.relu(x @ sae.W_enc + sae.b_enc).detach()
    c = W_dec[:, :8].norm(dim=1) + W_dec[:, 8:].norm(dim=1)
    weights = torch.tensor([0.15] * 6 + [1.0] * (N_LATENTS - 6), dtype=torch.float64)
    loss = (f @ W_dec + sae.b_dec.detach() - x).pow(2).sum(1).mean() + 0.1 * (f * c * weights).sum(1).mean()
    torch.testing.assert_close(of_rows, torch.autograd.grad(loss, one)[0])


@pytest.mark.parametrize(
    ("name", "term"),
    [("standard", "l1_loss"), ("gated", "l1_loss"), ("jumprelu-tanh", "l0_loss"), ("jumprelu-step", "l0_loss")],
)
def test_the_penalty_of_shared_latents_is_its_share_of_the_others(name: str, term: str) -> None:
    x = activations([8, 8])
    penalties = {
        ratio: step(make(name, [8, 8], n_shared_latents=6, shared_penalty_ratio=ratio), x).losses[term].item()
        for ratio in (0.2, 0.6, 1.0)
    }
    whole = step(make(name, [8, 8], n_shared_latents=N_LATENTS), x).losses[term].item() / 0.15
    assert penalties[0.6] == pytest.approx((penalties[0.2] + penalties[1.0]) / 2)
    assert 0 < penalties[0.2] < penalties[1.0]
    alike = make(name, [8, 8], n_shared_latents=N_LATENTS, shared_penalty_ratio=1.0)
    assert step(alike, x).losses[term].item() == pytest.approx(whole)


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
def test_shared_latents_with_their_own_k_have_their_own_selection_and_threshold(name: str, tmp_path: Path) -> None:
    sae = make(name, [8, 8], n_shared_latents=8, k=3, k_shared=1.0)
    assert isinstance(sae, BatchTopKTrainingCrosscoder)
    x = activations([8, 8])
    active = step(sae, x).feature_acts > 0
    assert active[:, :8].sum() == len(x)
    assert active[:, 8:].sum() == 2 * len(x)
    scores = torch.relu(x @ sae.W_enc + sae.b_enc) * sae.decoder_norms()
    expected = [scores[:, :8][active[:, :8]].min(), scores[:, 8:][active[:, 8:]].min()]
    torch.testing.assert_close(sae.topk_threshold, torch.stack(expected).detach())
    sae.eval()
    sae.topk_threshold.mul_(0.999)
    assert sae.topk_threshold[0] != sae.topk_threshold[1]
    sae.save_inference_model(tmp_path)
    stock = SAE.load_from_disk(tmp_path)
    assert torch.equal(stock.encode(x) > 0, sae.encode(x) > 0)
    torch.testing.assert_close(stock(x), sae(x))


@every_architecture
@every_designation
def test_the_saved_sae_keeps_the_layout(name: str, widths: list[int], fields: dict[str, Any], tmp_path: Path) -> None:
    sae = make(name, widths, normalize_activations="expected_average_only_in", **fields_of(name, fields))
    step(sae, activations(widths))
    scales = torch.linspace(0.5, 2.0, len(widths), dtype=torch.float64)
    sae.fold_activation_norm_scaling_factor(scales)
    sae.save_inference_model(tmp_path)
    stock = SAE.load_from_disk(tmp_path)
    masks = forbidden(sae)
    assert (stock.W_enc[masks["W_enc"]] == 0).all()
    assert (stock.W_dec[masks["W_dec"]] == 0).all()
    n_shared = sae.cfg.n_shared_latents
    in_training_units = stock.W_dec[:n_shared] * scales.repeat_interleave(torch.tensor(widths))
    for part in in_training_units.split(widths, dim=1):
        torch.testing.assert_close(part, in_training_units[:, : widths[0]] if n_shared else part)


def test_a_run_keeps_the_layout_over_a_checkpoint_and_to_the_saved_sae(tmp_path: Path) -> None:
    sae = standard_config(n_exclusive_latents=[6, 4], n_shared_latents=3)
    cfg = run_config(sae, tmp_path, n_checkpoints=1)
    CrosscoderTrainingRunner(cfg, token_dataset(400), tiny_pair()).run()
    (checkpoint,) = (tmp_path / "checkpoints").glob("*/[0-9]*")
    resumed = run_config(
        standard_config(n_exclusive_latents=[6, 4], n_shared_latents=3),
        tmp_path / "again",
        resume_from_checkpoint=str(checkpoint),
    )
    again = CrosscoderTrainingRunner(resumed, token_dataset(400), tiny_pair()).run()
    for saved in (SAE.load_from_disk(tmp_path / "output"), SAE.load_from_disk(tmp_path / "again" / "output"), again):
        assert (saved.W_dec[3:9, 16:] == 0).all()
        assert (saved.W_dec[9:13, :16] == 0).all()
        assert (saved.W_enc[16:, 3:9] == 0).all()
        assert (saved.W_enc[:16, 9:13] == 0).all()
        assert (saved.W_dec[13:] != 0).all()
    scales = torch.tensor([s["activation_scale"] for s in again.cfg.metadata.sources])
    first, second = again.W_dec[:3, :16] * scales[0], again.W_dec[:3, 16:] * scales[1]
    torch.testing.assert_close(first, second)


def test_a_run_from_a_finished_one_keeps_the_layout(tmp_path: Path) -> None:
    def layout() -> StandardTrainingCrosscoderConfig:
        return standard_config(n_exclusive_latents=[6, 4], n_shared_latents=3)

    CrosscoderTrainingRunner(run_config(layout(), tmp_path), token_dataset(400), tiny_pair()).run()
    cfg = run_config(layout(), tmp_path / "second", from_pretrained_path=str(tmp_path / "output"), n_checkpoints=1)
    runner = CrosscoderTrainingRunner(cfg, token_dataset(400), tiny_pair())
    first, second = runner.sae.W_dec[:3].chunk(2, dim=1)
    assert torch.equal(first, second)
    before = runner.sae.W_dec.detach().clone()
    runner.run()
    (checkpoint,) = (tmp_path / "second" / "checkpoints").glob("*/[0-9]*")
    W_dec = load_file(checkpoint / "sae_weights.safetensors")["W_dec"]
    assert not torch.equal(W_dec, before)
    assert torch.equal(*W_dec[:3].chunk(2, dim=1))
    assert (W_dec[3:9, 16:] == 0).all()
    assert (W_dec[9:13, :16] == 0).all()


def test_a_folded_crosscoder_with_shared_latents_cannot_be_trained_on() -> None:
    sae = make("standard", [8, 8], normalize_activations="expected_average_only_in", n_shared_latents=6)
    sae.fold_activation_norm_scaling_factor([2.0, 3.0])
    with pytest.raises(ConfigError, match="scales are folded into the weights"):
        step(sae, activations([8, 8]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_shared_latents": 21}, r"make 21 designated latents, but there are d_sae=20"),
        ({"n_shared_latents": 10, "n_exclusive_latents": [6, 6]}, "make 22 designated latents"),
        ({"n_exclusive_latents": [-1, 2]}, "must be 0 or more"),
        ({"n_exclusive_latents": [3]}, "has 1 counts for 2 sources"),
        ({"n_exclusive_latents": [20, 0]}, "none would write source 1"),
        ({"encoder_sources": [2]}, "different sources out of 0 to 1"),
        ({"encoder_sources": [0, 0]}, "different sources"),
        ({"encoder_sources": [0], "n_exclusive_latents": [2, 2]}, "Source 1 has exclusive latents"),
        ({"shared_penalty_ratio": 0.0}, r"shared_penalty_ratio=0.0 must lie in \(0, 1\]"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StandardTrainingCrosscoderConfig(d_in=16, d_sae=20, source_widths=[8, 8], **fields)


@pytest.mark.parametrize("k_shared", [0.0, 3.0, 7.0])
def test_a_k_of_shared_latents_that_does_not_fit_is_refused(k_shared: float) -> None:
    with pytest.raises(ConfigError, match=f"k_shared={k_shared} does not fit k=3"):
        make("batchtopk", [8, 8], n_shared_latents=6, k_shared=k_shared)


def test_shared_latents_need_sources_of_equal_width() -> None:
    with pytest.raises(ShapeError, match="one decoder row for all sources"):
        LatentLayout(20, [5, 8], n_shared=3)


def test_a_layout_without_designated_latents_registers_no_hook() -> None:
    sae = make("standard", [8, 8])
    step(sae, activations([8, 8]))
    assert not sae.W_dec._backward_hooks
    assert sae.cfg.layout.is_free


def test_prefixes_that_cannot_write_every_source_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"None of the first 4 latents .* may write source 1"):
        make("matryoshka", [8, 8], n_exclusive_latents=[5, 5])
    make("matryoshka", [8, 8], n_exclusive_latents=[3, 5])
    make("matryoshka", [8, 8], n_exclusive_latents=[5, 5], n_shared_latents=2)


def test_a_k_that_keeps_no_code_of_a_batch_is_refused() -> None:
    for fields in ({"k": 0.01}, {"k": 4.0, "k_shared": 0.01, "n_shared_latents": 6}):
        with pytest.raises(ConfigError, match="keeps no code at all in batches of 64 tokens"):
            run_config(batchtopk_config(**fields))


def test_a_layout_that_does_not_fit_the_sources_is_refused_before_any_model_is_loaded() -> None:
    with pytest.raises(ConfigError, match="has 3 counts for 2 sources"):
        run_config(standard_config(n_exclusive_latents=[4, 4, 4]))


def test_folded_weights_that_were_loaded_cannot_be_trained_on_as_one() -> None:
    sae = make("standard", [8, 8], normalize_activations="expected_average_only_in", n_shared_latents=6)
    sae.fold_activation_norm_scaling_factor([2.0, 3.0])
    again = make("standard", [8, 8], normalize_activations="none", n_shared_latents=6)
    again.load_state_dict(sae.state_dict())
    with pytest.raises(ConfigError, match="scales are folded into the weights"):
        step(again, activations([8, 8]))
