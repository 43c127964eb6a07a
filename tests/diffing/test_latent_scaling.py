"""Beta and nu: by hand, against least squares, against the tensors of the paper's own code, and their symmetries."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from typing import Any

import pytest
import torch
from dictionaries import StandInSAE, make_sources, random_activations, random_sae
from helpers import reference_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import TopKSAE, TopKSAEConfig
from torch import Tensor

from sae_lens_crosscoder import Source, Sources
from sae_lens_crosscoder.diffing import LatentScaling, LatentScalingResult, latent_scaling, run_pass
from sae_lens_crosscoder.errors import ConfigError, DataError, ShapeError, SourceError
from sae_lens_crosscoder.hub import load_crosscoder

TARGETS = ("error", "reconstruction", "activation", "activation_no_bias")


def close(actual: Tensor, expected: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol, equal_nan=True)


def same_beta(first: LatentScalingResult, second: LatentScalingResult, atol: float = 1e-10) -> None:
    for label, targets in first.beta.items():
        for target, values in targets.items():
            close(values, second.beta[label][target], atol)


# ----------------------------------------------------------------------------------------- the numbers


def test_beta_of_one_latent_by_hand():
    # Sources one wide, one latent that copies the chat model: f = (1, 2), d = (0.5, 2), b = (1, -1), v = 2.
    sae = StandInSAE(
        W_enc=torch.tensor([[0.0], [1.0]]),
        b_enc=torch.zeros(1),
        W_dec=torch.tensor([[0.5, 2.0]]),
        b_dec=torch.tensor([1.0, -1.0]),
    )
    result = latent_scaling(sae, [torch.tensor([[1.0, 1.0], [3.0, 2.0]])], "chat", make_sources(2, 1))
    # |v|^2 sum f^2 = 20. Base: x = (1, 3), x_hat = (1.5, 2), x without the bias = x without all others = (0, 2).
    base = {"activation": 14 / 20, "reconstruction": 11 / 20, "activation_no_bias": 8 / 20, "error": 8 / 20}
    chat = {"activation": 10 / 20, "reconstruction": 14 / 20, "activation_no_bias": 16 / 20, "error": 16 / 20}
    assert {t: v.item() for t, v in result.beta["base"].items()} == pytest.approx(base)
    assert {t: v.item() for t, v in result.beta["chat"].items()} == pytest.approx(chat)
    assert result.nu_error.item() == pytest.approx(8 / 16)
    assert result.nu_reconstruction.item() == pytest.approx(11 / 14)
    assert result.nu_activation.item() == pytest.approx(14 / 10)
    assert result.n_tokens == 2
    assert result.n_active.tolist() == [2]


def least_squares(f: Tensor, target: Tensor, direction: Tensor) -> Tensor:
    """beta of one latent by an independent solver: target = beta * f v, all numbers in one long column."""
    column = torch.outer(f, direction).reshape(-1, 1)
    return torch.linalg.lstsq(column, target.reshape(-1, 1)).solution.squeeze()


@pytest.mark.parametrize(("n_sources", "probe"), [(2, "base"), (2, "chat"), (3, "chat"), (3, "third")])
def test_beta_is_the_least_squares_solution_for_every_source_and_target(n_sources: int, probe: str):
    width = 5
    sources = make_sources(n_sources, width)
    sae = random_sae(n_sources * width, d_sae=7)
    x = random_activations(300, n_sources * width)
    result = latent_scaling(sae, x.split(64), probe, sources)
    f = sae.encode(x)
    x_hat = sae.decode(f)
    assert set(result.beta) == set(sources.labels)
    for label in sources.labels:
        columns = sources.columns(label)
        own = sae.W_dec[:, columns]
        for j in range(7):
            targets = {
                "error": x[:, columns] - (x_hat[:, columns] - torch.outer(f[:, j], own[j])),
                "reconstruction": x_hat[:, columns],
                "activation": x[:, columns],
                "activation_no_bias": x[:, columns] - sae.b_dec[columns],
            }
            direction = sae.W_dec[j, sources.columns(probe)]
            for target, values in targets.items():
                close(result.beta[label][target][j], least_squares(f[:, j], values, direction))


@pytest.mark.parametrize("name", ["relu_crosscoder", "batchtopk_crosscoder"])
def test_beta_and_nu_are_those_of_the_papers_own_code(name: str):
    folder = reference_checkpoint("latent_scaling") / name
    theirs: dict[str, Tensor] = torch.load(folder / "io.pt", weights_only=True)
    sae = load_crosscoder(folder / "checkpoint").to(dtype=torch.float64)
    batches = theirs["x_raw"].double().flatten(1).split(1000)
    result = latent_scaling(sae, batches, "chat", make_sources(2, 16))
    for label, peer in (("base", "base"), ("chat", "ft")):
        for target in TARGETS:
            close(result.beta[label][target], theirs[f"beta_{peer}_{target}"])
    close(result.nu_error, theirs["nu_error"])
    close(result.nu_reconstruction, theirs["nu_reconstruction"])
    close(result.nu_activation, theirs["nu_activation"])
    assert torch.equal(result.n_active.double(), theirs["count_active"].double())


def test_a_latent_that_never_fires_and_one_without_direction_have_no_beta():
    sae = random_sae()
    sae.b_enc[3] = -1e6
    sae.W_dec[5, 6:] = 0
    result = latent_scaling(sae, [random_activations()], "chat", make_sources())
    for label in ("base", "chat"):
        for target in TARGETS:
            assert result.beta[label][target].isnan().nonzero().flatten().tolist() == [3, 5]
    assert result.nu_error.isnan().nonzero().flatten().tolist() == [3, 5]


def planted() -> tuple[StandInSAE, Tensor]:
    """Three orthogonal concepts. Latents 0 to 2 read them off the chat model and write them there, and nothing in base.

    Concept 0 is only in chat. Concept 1 is in base at half the strength: the decoder there was shrunk away. Concept 2
    is in base in full, but latent 3 reads and writes it there.
    """
    concepts = torch.eye(8, dtype=torch.float64)[:3]
    strengths = torch.rand(400, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    in_base = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    x = torch.cat([(strengths * in_base) @ concepts, strengths @ concepts], dim=1)
    reads, writes = torch.zeros(4, 16, dtype=torch.float64), torch.zeros(4, 16, dtype=torch.float64)
    reads[:3, 8:] = writes[:3, 8:] = concepts
    reads[3, :8] = writes[3, :8] = concepts[2]
    nothing = torch.zeros(16, dtype=torch.float64)
    return StandInSAE(W_enc=reads.T, b_enc=nothing[:4], W_dec=writes, b_dec=nothing), x


# ----------------------------------------------------------------------------------------- difference


def test_for_a_difference_the_difference_is_encoded_and_the_models_activations_are_the_targets():
    sources = make_sources(2, 6, "difference")
    sae = random_sae(6, d_sae=7)
    x = random_activations(300, 12)
    result = latent_scaling(sae, x.split(70), "chat", sources)
    f = sae.encode(x[:, 6:] - x[:, :6])
    assert {label: list(targets) for label, targets in result.beta.items()} == {
        "base": ["activation"],
        "chat": ["activation"],
    }
    for j in range(7):
        close(result.beta["base"]["activation"][j], least_squares(f[:, j], x[:, :6], sae.W_dec[j]))
        close(result.beta["chat"]["activation"][j], least_squares(f[:, j], x[:, 6:], sae.W_dec[j]))
    close(result.nu_activation, result.beta["base"]["activation"] / result.beta["chat"]["activation"])
    with pytest.raises(ConfigError, match="reconstructs no model by itself"):
        _ = result.nu_error


def test_batches_of_the_difference_alone_cannot_compare_the_models():
    with pytest.raises(ShapeError, match=r"difference of the models alone.*\(batch, 12\)"):
        latent_scaling(random_sae(6), [random_activations(9, 6)], "chat", make_sources(2, 6, "difference"))


# ----------------------------------------------------------------------------------------- symmetries


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 200), max_size=6))
def test_beta_does_not_depend_on_how_the_tokens_are_cut_into_batches(cuts: list[int]):
    sae, x = random_sae(), random_activations()
    whole = latent_scaling(sae, [x], "chat", make_sources())
    edges = [0, *sorted(cuts), 200]
    parts = (x[a:b] for a, b in itertools.pairwise(edges))
    same_beta(latent_scaling(sae, parts, "chat", make_sources()), whole, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.permutations(range(10)))
def test_beta_moves_with_the_latents(order: list[int]):
    sae, x = random_sae(), random_activations()
    moved = dataclasses.replace(sae, W_enc=sae.W_enc[:, order], b_enc=sae.b_enc[order], W_dec=sae.W_dec[order])
    result = latent_scaling(sae, [x], "chat", make_sources())
    of_moved = latent_scaling(moved, [x], "chat", make_sources())
    for label, targets in result.beta.items():
        for target, values in targets.items():
            close(of_moved.beta[label][target], values[order])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000))
def test_swapping_the_sources_and_the_probe_swaps_beta(seed: int):
    sae, x = random_sae(seed=seed), random_activations(seed=seed + 1)
    swap = torch.arange(12).roll(6)
    swapped_sae = dataclasses.replace(sae, W_enc=sae.W_enc[swap], W_dec=sae.W_dec[:, swap], b_dec=sae.b_dec[swap])
    sources = make_sources()
    swapped_sources = Sources((sources[1], sources[0]))
    same_beta(
        latent_scaling(sae, [x], "chat", sources), latent_scaling(swapped_sae, [x[:, swap]], "chat", swapped_sources)
    )


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.01, 100), min_size=10, max_size=10))
def test_scaling_a_latent_up_and_its_decoder_down_leaves_beta(factors: list[float]):
    scale = torch.tensor(factors, dtype=torch.float64)
    sae, x = random_sae(), random_activations()
    folded = dataclasses.replace(
        sae, W_enc=sae.W_enc * scale, b_enc=sae.b_enc * scale, W_dec=sae.W_dec / scale[:, None]
    )
    same_beta(latent_scaling(sae, [x], "chat", make_sources()), latent_scaling(folded, [x], "chat", make_sources()))


@settings(deadline=None, max_examples=50)
@given(st.floats(0.01, 100))
def test_scaling_one_latents_activation_alone_divides_its_activation_beta(factor: float):
    sae, x = random_sae(), random_activations()
    scaled = dataclasses.replace(sae, W_enc=sae.W_enc.clone(), b_enc=sae.b_enc.clone())
    scaled.W_enc[:, 4] *= factor
    scaled.b_enc[4] *= factor
    before = latent_scaling(sae, [x], "chat", make_sources()).beta["base"]["activation"]
    after = latent_scaling(scaled, [x], "chat", make_sources()).beta["base"]["activation"]
    torch.testing.assert_close(after[4] * factor, before[4])


# ----------------------------------------------------------------------------------------- accumulating


def test_merged_accumulators_have_seen_all_tokens():
    sae, x = random_sae(), random_activations()
    parts = [LatentScaling("chat") for _ in range(3)]
    run_pass(sae, [x[:70]], [parts[0]], make_sources())
    run_pass(sae, [x[70:]], [parts[1]], make_sources())
    whole = LatentScaling("chat")
    for part in parts:
        whole.merge(part)
    same_beta(whole.compute(), latent_scaling(sae, [x], "chat", make_sources()))
    assert whole.compute().n_tokens == 200
    assert torch.equal(whole.compute().n_active, (sae.encode(x) > 0).sum(dim=0))


@pytest.mark.parametrize("at_once", [1, 30, 60, 2**21])
def test_beta_does_not_depend_on_how_many_latents_are_taken_at_once(monkeypatch: pytest.MonkeyPatch, at_once: int):
    sae, x = random_sae(), random_activations()
    whole = latent_scaling(sae, [x], "chat", make_sources())
    # 24 numbers a latent while adding, 6 while computing: blocks of 1, of 1 and 5, of 2 and 10 latents out of 10.
    module = importlib.import_module("sae_lens_crosscoder.diffing.latent_scaling")  # the package has the function
    monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", at_once)
    same_beta(latent_scaling(sae, [x], "chat", make_sources()), whole, atol=1e-12)


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_shown_if_it_is_asked_for(progress: bool, capsys: pytest.CaptureFixture[str]):
    latent_scaling(random_sae(), [random_activations()], "chat", make_sources(), progress=progress)
    assert ("Reading latents" in capsys.readouterr().err) == progress


def test_accumulators_of_another_probe_or_sae_are_not_merged():
    def accumulated(probe: str, seed: int = 0) -> LatentScaling:
        accumulator = LatentScaling(probe)
        run_pass(random_sae(seed=seed), [random_activations()], [accumulator], make_sources())
        return accumulator

    for other in (accumulated("base"), accumulated("chat", seed=7)):
        with pytest.raises(ConfigError, match="different probes, sources or SAEs"):
            accumulated("chat").merge(other)


def test_half_precision_is_summed_in_float64():
    exact = latent_scaling(random_sae(), [random_activations()], "chat", make_sources()).beta
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        rough = latent_scaling(random_sae(dtype=dtype), [random_activations(dtype=dtype)], "chat", make_sources()).beta
        for target in TARGETS:
            assert rough["base"][target].dtype == torch.float64
            torch.testing.assert_close(rough["base"][target], exact["base"][target], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("batch_size", [1, 2000])
def test_no_small_term_is_lost_in_float32(batch_size: int):
    # One term of 2^24 swallows any 1 that float32 adds to it.
    sae = StandInSAE(torch.tensor([[0.0], [1.0]]), torch.zeros(1), torch.tensor([[0.0, 1.0]]), torch.zeros(2))
    x = torch.ones(1001, 2)
    x[0] = 4096.0
    x[1:, 0] = 2.0
    result = latent_scaling(sae, x.split(batch_size), "chat", make_sources(2, 1))
    exact = (4096.0**2 + 2000) / (4096.0**2 + 1000)
    assert result.beta["base"]["activation"].item() == pytest.approx(exact, rel=1e-14)


# ----------------------------------------------------------------------------------------- SAELens


def test_a_topk_sae_that_divides_by_the_decoder_norm_is_measured_by_what_it_decodes():
    sources = make_sources()
    cfg = TopKSAEConfig(d_in=12, d_sae=10, k=3, rescale_acts_by_decoder_norm=True)
    cfg.metadata.sources = sources.to_metadata()["sources"]
    cfg.metadata.combine = "concat"
    sae = TopKSAE(cfg)
    weights = random_sae(dtype=torch.float32)
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(sae, name).copy_(getattr(weights, name))
        sae.b_enc.zero_()
    x = random_activations(dtype=torch.float32)
    result = latent_scaling(sae, [x], "chat")
    with torch.no_grad():
        f, x_hat = sae.encode(x).double(), sae(x).double()
    unit = (sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True)).detach().double()
    for j in range(10):
        error = x[:, :6].double() - x_hat[:, :6] + torch.outer(f[:, j], unit[j, :6])
        close(result.beta["base"]["error"][j], least_squares(f[:, j], error, unit[j, 6:]), atol=1e-5)
    assert result.beta["base"]["error"].requires_grad is False


# ----------------------------------------------------------------------------------------- refusals


def scaled(probe: str = "chat", sources: Any = None, batches: Any = None) -> LatentScalingResult:
    return latent_scaling(random_sae(), [random_activations()] if batches is None else batches, probe, sources)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(SourceError, match=r"no source 'it'.*'base', 'chat'"):
        scaled("it", make_sources())
    with pytest.raises(ConfigError, match="the only one"):
        scaled("base", make_sources(1, 12))
    narrow = Sources((Source("base", "a", "h", 4), Source("chat", "b", "h", 8)))
    with pytest.raises(ShapeError, match="base: 4, chat: 8"):
        scaled("chat", narrow)
    with pytest.raises(DataError, match="No tokens"):
        scaled("chat", make_sources(), [])
