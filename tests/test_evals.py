from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from helpers import crosscoder, source, tiny_model, tiny_pair, token_dataset
from hypothesis import given
from hypothesis import strategies as st
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_crosscoder import (
    JOINT_HOOK_NAME,
    CrosscoderEvaluator,
    ExplainedVariance,
    JointModel,
    Sources,
    SourceScaler,
)
from sae_lens_crosscoder.activations.batches import ShardedBatches, TrainingBatches
from sae_lens_crosscoder.errors import DataError
from sae_lens_crosscoder.ranks import Ranks

NAMES = ("explained_variance", "explained_variance_mean_of_ratios", "explained_variance_centred")


def tokens(n_rows: int = 10, seed: int = 0) -> torch.Tensor:
    return torch.tensor(token_dataset(n_rows, seed=seed)["input_ids"][:])


def evaluator(model: JointModel, n_rows: int = 10, batch: int = 4, **fields: Any) -> CrosscoderEvaluator:
    return CrosscoderEvaluator(model, {"ids": tokens(n_rows)}, {"ids": 1.0}, batch, **fields)


def stock_sae(d_sae: int = 64, d_in: int = 32, dtype: str = "float64") -> StandardSAE:
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae, dtype=dtype, apply_b_dec_to_input=False))
    sae.cfg.metadata.hook_name = JOINT_HOOK_NAME
    return sae


def identity_sae(dtype: str = "float64") -> StandardSAE:
    """x = ReLU(x) - ReLU(-x), exactly."""
    sae = stock_sae(dtype=dtype)
    eye = torch.eye(32, dtype=sae.dtype)
    sae.W_enc.data = torch.cat([eye, -eye], dim=1)
    sae.W_dec.data = torch.cat([eye, -eye])
    return sae


def zero_sae() -> StandardSAE:
    sae = stock_sae()
    sae.W_dec.data.zero_()
    return sae


def random_sae() -> StandardSAE:
    sae = identity_sae()
    sae.W_dec.data += 0.2 * torch.randn_like(sae.W_dec)
    sae.b_dec.data += 0.1
    return sae


def by_numpy(x: torch.Tensor, x_hat: torch.Tensor) -> dict[str, float]:
    """The three definitions of maths.md B9, on the whole data at once."""
    X, E = x.double().numpy(), (x.double() - x_hat.double()).numpy()
    squared, deviation = (E**2).sum(1), ((X - X.mean(0)) ** 2).sum(1)
    return {
        NAMES[0]: 1 - squared.mean() / deviation.mean(),
        NAMES[1]: float(np.mean(1 - squared / deviation)),
        NAMES[2]: 1 - E.var(0).sum() / X.var(0).sum(),
    }


# ------------------------------------------------------------------------------ explained variance


def test_explained_variance_of_two_tokens_worked_out_by_hand():
    x = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    x_hat = torch.tensor([[1.0, 0.0], [4.0, 1.0]])
    variance = ExplainedVariance(x.double().mean(dim=0))
    variance.add(x, x_hat)
    # mean x = (2, 0), deviations 4 and 4; errors (-1, 0) and (0, -1): squares 1 and 1, mean error (-1/2, -1/2).
    assert variance.compute() == pytest.approx({NAMES[0]: 1 - 2 / 8, NAMES[1]: 0.75, NAMES[2]: 1 - (2 - 2 * 0.5) / 8})


@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_explained_variance_is_that_of_all_tokens_however_they_are_split(seed: int, cuts: list[int]):
    generator = torch.Generator().manual_seed(seed)
    x = 3 + torch.randn(sum(cuts) + 2, 5, generator=generator) * torch.rand(5, generator=generator)
    x_hat = x + 0.3 * torch.randn(len(x), 5, generator=generator) + 0.2
    variance = ExplainedVariance(x.double().mean(dim=0))
    for part, part_hat in zip(x.split([*cuts, 2]), x_hat.split([*cuts, 2]), strict=True):
        variance.add(part, part_hat)
    assert variance.n_tokens == len(x)
    assert variance.compute() == pytest.approx(by_numpy(x, x_hat), rel=1e-9, abs=1e-9)


def test_a_constant_error_is_seen_by_all_definitions_but_the_centred_one():
    x = torch.randn(50, 4, dtype=torch.float64)
    variance = ExplainedVariance(x.mean(dim=0))
    variance.add(x, x + 1)
    result = variance.compute()
    assert result[NAMES[2]] == pytest.approx(1.0)
    assert max(result[NAMES[0]], result[NAMES[1]]) < 0.5


# ------------------------------------------------------------------------------------- evaluations


def test_a_perfect_crosscoder_explains_everything_and_changes_no_model():
    metrics = evaluator(tiny_pair(dtype=torch.float64)).evaluate(identity_sae())
    for part in (metrics, metrics["sources"]["base"], metrics["sources"]["chat"]):
        assert {part[name] for name in NAMES} == {1.0}
    for label in ("base", "chat"):
        of_source = metrics["sources"][label]
        assert of_source["ce_loss_score"] == pytest.approx(1, abs=1e-9)
        assert of_source["kl_div_score"] == pytest.approx(1, abs=1e-9)
        assert of_source["ce_loss_with_sae"] == pytest.approx(of_source["ce_loss_without_sae"])
    assert metrics["l0"] == 32
    assert (metrics["d_sae"], metrics["dead_latents"], metrics["n_tokens"]) == (64, 0, 160)


def test_a_crosscoder_that_writes_nothing_scores_as_the_ablated_model():
    metrics = evaluator(tiny_pair(dtype=torch.float64)).evaluate(zero_sae())
    for label in ("base", "chat"):
        of_source = metrics["sources"][label]
        assert of_source["ce_loss_score"] == pytest.approx(0, abs=1e-12)
        assert of_source["kl_div_score"] == pytest.approx(0, abs=1e-12)
        assert of_source["explained_variance_centred"] == pytest.approx(0, abs=1e-12)
        assert of_source["explained_variance"] <= 0


def test_losses_are_those_of_each_model_with_its_slice_replaced():
    model, sae = tiny_pair(dtype=torch.float64), random_sae()
    metrics = evaluator(model).evaluate(sae)
    x_hat = sae(model(tokens()))
    for position, label in enumerate(("base", "chat")):
        own: Any = model.source_models[position]
        part = x_hat[..., model.sources.columns(label)]
        hooks = [("blocks.1.hook_resid_pre", lambda activation, hook, part=part: part)]
        patched = own.run_with_hooks(tokens(), return_type="both", fwd_hooks=hooks)
        log_p, log_q = own(tokens()).log_softmax(-1), patched.logits.log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        of_source = metrics["sources"][label]
        assert of_source["ce_loss_with_sae"] == pytest.approx(patched.loss.item(), rel=1e-9)
        assert of_source["ce_loss_without_sae"] == pytest.approx(own(tokens(), return_type="loss").item(), rel=1e-9)
        assert of_source["kl_div_with_sae"] == pytest.approx(kl.item(), rel=1e-9)


def test_variances_and_sparsity_are_those_of_all_tokens_at_once_in_total_and_per_source():
    model, sae = tiny_pair(dtype=torch.float64), random_sae()
    metrics = evaluator(model).evaluate(sae)
    x = model(tokens()).flatten(0, 1)
    codes = sae.encode(x)
    x_hat = sae.decode(codes).detach()
    assert {name: metrics[name] for name in NAMES} == pytest.approx(by_numpy(x, x_hat))
    for label in ("base", "chat"):
        columns = model.sources.columns(label)
        expected = by_numpy(x[:, columns], x_hat[:, columns])
        assert {name: metrics["sources"][label][name] for name in NAMES} == pytest.approx(expected)
    assert metrics["l0"] == pytest.approx((codes > 0).sum().item() / 160)


def test_metrics_do_not_depend_on_the_batch_size():
    model, sae = tiny_pair(dtype=torch.float64), random_sae()
    results = [evaluator(model, batch=batch)(sae, iter(()), ActivationScaler()) for batch in (3, 10, 64)]
    assert results[0] == pytest.approx(results[1], rel=1e-9)
    assert results[0] == pytest.approx(results[2], rel=1e-9)


def test_latents_that_are_silent_on_all_tokens_are_dead():
    sae = identity_sae()
    sae.b_enc.data[:5] = -1e6
    assert evaluator(tiny_pair(dtype=torch.float64)).evaluate(sae)["dead_latents"] == 5


def test_excluded_tokens_are_not_counted_by_any_metric():
    model, sae = tiny_pair(dtype=torch.float64), random_sae()
    excluded = (0, int(tokens()[0, 3]))
    metrics = evaluator(model, excluded_tokens=excluded).evaluate(sae)
    keep = ~torch.isin(tokens(), torch.tensor(excluded))
    assert metrics["n_tokens"] == int(keep.sum()) < 150
    x = model(tokens())
    assert {name: metrics[name] for name in NAMES} == pytest.approx(by_numpy(x[keep], sae(x[keep]).detach()))
    loss = model.source_models[0](tokens(), return_type="loss", loss_per_token=True)
    assert metrics["sources"]["base"]["ce_loss_without_sae"] == pytest.approx(loss[keep[:, :-1]].mean().item())


def test_an_excluded_token_may_be_as_wrong_as_it_likes():
    model, sae = tiny_pair(dtype=torch.float64), identity_sae()
    model.source_models[0].W_E.data[0] = 1e3  # type: ignore[union-attr, index]
    metrics = evaluator(model, excluded_tokens=(0,)).evaluate(sae)
    assert metrics["sources"]["base"]["explained_variance"] == 1.0


def test_a_crosscoder_in_training_is_measured_with_its_scaler():
    model = tiny_pair(dtype=torch.float64)
    scaler = SourceScaler(model.sources)
    scaler.scaling_factor = torch.tensor([0.5, 3.0], dtype=torch.float64)
    sae = crosscoder(dtype="float64").train()
    sae.cfg.metadata.hook_name = JOINT_HOOK_NAME
    in_training = evaluator(model).evaluate(sae, scaler)
    assert sae.training
    sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    folded = evaluator(model).evaluate(sae)
    for name in (*NAMES, "l0", "dead_latents"):
        assert in_training[name] == pytest.approx(folded[name], rel=1e-5)
    assert in_training["sources"]["chat"] == pytest.approx(folded["sources"]["chat"], rel=1e-5)


def test_a_difference_is_measured_on_both_models():
    model = tiny_pair(dtype=torch.float64, combine="difference")
    sae = stock_sae(32, 16)
    eye = torch.eye(16, dtype=torch.float64)
    sae.W_enc.data, sae.W_dec.data = torch.cat([eye, -eye], 1), torch.cat([eye, -eye])
    metrics = evaluator(model).evaluate(sae)
    for label in ("base", "chat"):
        assert metrics["sources"][label]["ce_loss_score"] == pytest.approx(1, abs=1e-9)
        assert metrics["sources"][label]["explained_variance"] == 1.0


def test_sources_of_different_width_are_cut_where_they_end():
    sources = Sources((source("base"), source("chat", d_in=24)))
    model = JointModel(sources, [tiny_model(0, dtype=torch.float64), tiny_model(1, 24, dtype=torch.float64)])
    sae = crosscoder(widths=(16, 24), dtype="float64", normalize_activations="none").eval()
    sae.cfg.metadata.hook_name = JOINT_HOOK_NAME
    metrics = evaluator(model).evaluate(sae)
    x = model(tokens()).flatten(0, 1)
    expected = by_numpy(x[:, 16:], sae(x).detach()[:, 16:])
    assert {name: metrics["sources"]["chat"][name] for name in NAMES} == pytest.approx(expected)


# --------------------------------------------------------------------------------------- data sets


def test_every_data_set_of_a_mixture_is_measured_alone_too():
    model, sae = tiny_pair(dtype=torch.float64), random_sae()
    data = {"code": tokens(8, seed=1), "chat": tokens(8, seed=2)}
    metrics = CrosscoderEvaluator(model, data, {"code": 0.5, "chat": 0.5}, 4).evaluate(sae)
    assert set(metrics["datasets"]) == {"code", "chat"}
    for label, rows in data.items():
        alone = CrosscoderEvaluator(model, {"x": rows}, {"x": 1.0}, 4).evaluate(sae)
        assert metrics["datasets"][label] == alone
    assert "datasets" not in alone
    both = (metrics["datasets"]["code"]["l0"] + metrics["datasets"]["chat"]["l0"]) / 2
    assert metrics["l0"] == pytest.approx(both)


def test_data_sets_have_their_shares_in_the_overall_metrics():
    data = {"code": tokens(8, seed=1), "chat": tokens(8, seed=2)}
    model = tiny_pair(dtype=torch.float64)
    metrics = CrosscoderEvaluator(model, data, {"code": 0.2, "chat": 0.8}, 4).evaluate(random_sae())
    assert metrics["n_tokens"] == (2 + 8) * 16


def test_for_the_log_metrics_have_flat_names():
    flat = evaluator(tiny_pair(dtype=torch.float64))(random_sae(), iter(()), ActivationScaler())
    assert {"eval/l0", "eval/sources/base/ce_loss_score", "eval/sources/chat/explained_variance"} <= set(flat)
    assert all(isinstance(value, float | int) for value in flat.values())


@pytest.mark.parametrize("of_shards", [False, True], ids=["a store's batches", "as the runner gives them"])
def test_harvesting_pauses_while_it_is_measured(monkeypatch: pytest.MonkeyPatch, of_shards: bool):
    from helpers import paired_store

    model = tiny_pair()
    batches = TrainingBatches(paired_store(model, n_ahead_prompts=8), in_background=True)
    provider = ShardedBatches([batches], Ranks(), gathers=True) if of_shards else batches
    inside: list[int] = []
    source_activations = JointModel.source_activations

    def noting(self: JointModel, batch: torch.Tensor) -> Any:
        if threading.current_thread() is threading.main_thread():
            inside.append(batches._thread._n_pauses)  # type: ignore[union-attr]
        return source_activations(self, batch)

    try:
        next(batches)
        with batches.paused():
            monkeypatch.setattr(JointModel, "source_activations", noting)
        evaluator(model)(identity_sae("float32"), provider, ActivationScaler())
    finally:
        batches.close()
    assert inside
    assert all(inside)


@pytest.mark.parametrize("data", [{}, {"ids": torch.zeros(0, 16, dtype=torch.long)}])
def test_nothing_to_evaluate_on_is_refused(data: Any):
    with pytest.raises(DataError, match=r"no held-out sequences.*Set n_eval_batches"):
        CrosscoderEvaluator(tiny_pair(), data, dict.fromkeys(data, 1.0), 4)
