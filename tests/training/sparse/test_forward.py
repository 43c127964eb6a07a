"""The sparse step against the dense one, in float64: losses, gradients, thresholds, whole runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import N_LATENTS, N_TOKENS, activations, every_layout, gradients, make, step
from sae_lens import TrainingSAE

from sae_lens_crosscoder import TrainingCrosscoder
from sae_lens_crosscoder._saelens import TrainStepOutput
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.training.sparse import forward

SELECTING = ("topk", "batchtopk", "matryoshka")
JUMPING = ("jumprelu-tanh", "jumprelu-step")
SPARSE = (*SELECTING, "standard", *JUMPING)
every_sparse = pytest.mark.parametrize("name", SPARSE)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "joint norm": {"decoder_norm": "joint"},
    "no norm": {"decoder_norm": "none"},
    "difference": {"difference_weight": -0.6},
    "bias subtracted": {"apply_b_dec_to_input": True},
    "shared": {"n_shared_latents": 6},
    "exclusive": {"n_shared_latents": 3, "n_exclusive_latents": [2, 4]},
    "one encoder source": {"encoder_sources": [1]},
}


@pytest.fixture
def sparse(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Toy shapes take the sparse step, until `densely` is called."""
    monkeypatch.setattr(forward, "MAX_ACTIVE_SHARE", 1.0)
    return monkeypatch


def densely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "MAX_ACTIVE_SHARE", -1.0)


def dead_latents(n: int) -> torch.Tensor:
    return torch.arange(N_LATENTS) % 3 == 0 if n else torch.zeros(N_LATENTS, dtype=torch.bool)


def both_steps(
    monkeypatch: pytest.MonkeyPatch, sae: TrainingCrosscoder[Any], x: torch.Tensor, dead: torch.Tensor
) -> tuple[tuple[TrainStepOutput, dict[str, torch.Tensor]], tuple[TrainStepOutput, dict[str, torch.Tensor]]]:
    sparse_out, sparse_gradients = step(sae, x, dead), gradients(sae, x, dead)
    densely(monkeypatch)
    dense_out, dense_gradients = step(sae, x, dead), gradients(sae, x, dead)
    assert sparse_out.feature_acts.is_sparse
    assert not dense_out.feature_acts.is_sparse
    return (sparse_out, sparse_gradients), (dense_out, dense_gradients)


def assert_equal_steps(
    here: tuple[TrainStepOutput, dict[str, torch.Tensor]], there: tuple[TrainStepOutput, dict[str, torch.Tensor]]
) -> None:
    close: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
    assert list(here[0].losses) == list(there[0].losses)
    for name, loss in there[0].losses.items():
        torch.testing.assert_close(here[0].losses[name], loss, **close, msg=name)
    torch.testing.assert_close(here[0].loss, there[0].loss, **close)
    torch.testing.assert_close(here[0].sae_out, there[0].sae_out, **close)
    torch.testing.assert_close(here[0].feature_acts.to_dense(), there[0].feature_acts, **close)
    for name, gradient in there[1].items():
        torch.testing.assert_close(here[1][name], gradient, **close, msg=name)


@pytest.mark.parametrize("n_dead", [0, 7])
@pytest.mark.parametrize("option", OPTIONS)
@every_sparse
def test_losses_codes_and_gradients_are_those_of_the_dense_step(
    sparse: pytest.MonkeyPatch, name: str, option: str, n_dead: int
) -> None:
    fields = dict(OPTIONS[option])
    if name == "matryoshka" and option == "exclusive":
        fields["matryoshka_widths"] = [4, 10]
    assert_equal_steps(*both_steps(sparse, make(name, [8, 8], **fields), activations([8, 8]), dead_latents(n_dead)))


@pytest.mark.parametrize("name", SELECTING)
def test_without_an_auxiliary_loss_dead_latents_get_no_gradient(sparse: pytest.MonkeyPatch, name: str) -> None:
    sae = make(name, [8, 8], aux_loss_coefficient=0.0)
    here, there = both_steps(sparse, sae, activations([8, 8]), dead_latents(7))
    assert_equal_steps(here, there)
    active = here[0].feature_acts.to_dense().any(dim=0)
    assert (here[1]["W_dec"].any(dim=1) == active).all()


@every_layout
@every_sparse
def test_sources_of_any_number_and_width_give_the_gradients_of_the_dense_step(
    sparse: pytest.MonkeyPatch, name: str, widths: list[int]
) -> None:
    assert_equal_steps(*both_steps(sparse, make(name, widths), activations(widths), dead_latents(7)))


@pytest.mark.parametrize("n_shared", [6, 1])
@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
def test_shared_latents_with_a_k_of_their_own_are_selected_as_in_the_dense_step(
    sparse: pytest.MonkeyPatch, name: str, n_shared: int
) -> None:
    fields = {"n_shared_latents": n_shared, "k_shared": 1.0, "k": 3.0}
    dense, x = make(name, [8, 8], **fields), activations([8, 8])
    here = make(name, [8, 8], **fields)
    output = step(here, x)
    densely(sparse)
    expected = step(dense, x)
    torch.testing.assert_close(output.feature_acts.to_dense(), expected.feature_acts)
    assert expected.feature_acts[:, :n_shared].any()
    torch.testing.assert_close(here.topk_threshold, dense.topk_threshold, rtol=1e-12, atol=0)
    assert len(here.topk_threshold) == 2


@every_sparse
def test_what_the_layout_forbids_has_gradient_zero_to_the_last_bit(sparse: pytest.MonkeyPatch, name: str) -> None:
    sae = make(name, [8, 8], n_shared_latents=2, n_exclusive_latents=[5, 4])
    found = gradients(sae, activations([8, 8]), dead_latents(7))
    assert (found["W_enc"][8:, 2:7] == 0).all()
    assert (found["W_enc"][:8, 7:11] == 0).all()
    assert (found["W_dec"][2:7, 8:] == 0).all()
    assert (found["W_dec"][7:11, :8] == 0).all()
    assert torch.equal(found["W_dec"][:2, :8], found["W_dec"][:2, 8:])
    assert found["W_dec"][:2].abs().min() > 0


@every_sparse
def test_a_batch_without_a_positive_code_trains_the_bias_only(sparse: pytest.MonkeyPatch, name: str) -> None:
    sae = make(name, [8, 8])
    with torch.no_grad():
        sae.b_enc.sub_(100)
    here, there = both_steps(sparse, sae, activations([8, 8]), dead_latents(0))
    assert_equal_steps(here, there)
    assert here[0].feature_acts._nnz() == 0
    assert here[1]["b_dec"].abs().min() > 0


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka"])
@pytest.mark.parametrize(
    ("fields", "n_tokens"),
    [({"k": 0.5}, 1), ({"k_start": 0.001, "k_annealing_steps": 10}, N_TOKENS)],
    ids=["a batch of one", "at the start of annealing"],
)
def test_a_k_that_keeps_no_code_of_a_batch_trains_the_bias_only(
    sparse: pytest.MonkeyPatch, name: str, fields: dict[str, Any], n_tokens: int
) -> None:
    here, there = both_steps(sparse, make(name, [8, 8], **fields), activations([8, 8])[:n_tokens], dead_latents(0))
    assert_equal_steps(here, there)
    assert here[0].feature_acts._nnz() == 0


@every_sparse
def test_rounded_encoder_products_give_nearly_the_same_step(sparse: pytest.MonkeyPatch, name: str) -> None:
    x = activations([8, 8])
    exact = step(make(name, [8, 8]), x)
    rounded = step(make(name, [8, 8], encoder_precision="bfloat16"), x)
    assert rounded.loss.item() == pytest.approx(exact.loss.item(), rel=0.02)
    assert rounded.loss.item() != exact.loss.item()


@pytest.mark.parametrize("devices", [(), ("cpu",)], ids=["bounds", "chunks"])
@every_sparse
def test_autocast_rounds_the_products_of_the_encoder_and_nothing_else(
    sparse: pytest.MonkeyPatch, name: str, devices: tuple[str, ...]
) -> None:
    sparse.setattr(forward, "CHUNKED_DEVICES", devices)
    x = activations([8, 8]).float()
    expected = step(make(name, [8, 8], dtype="float32", encoder_precision="bfloat16"), x)
    sae = make(name, [8, 8], dtype="float32")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = step(sae, x)
    assert output.feature_acts.is_sparse
    assert output.sae_out.dtype == torch.float32
    assert torch.equal(output.feature_acts.to_dense(), expected.feature_acts.to_dense())
    assert torch.equal(output.sae_out, expected.sae_out)
    assert output.loss.item() != step(sae, x).loss.item()


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"encoder_precision='int8' is unknown\. Use one of float32, bfloat16"):
        make("batchtopk", [8, 8], encoder_precision="int8")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"dtype": "bfloat16"}, "float32 or float64, not in torch.bfloat16"),
        ({"k": 4}, "20.0% of the codes are active, more than 5%"),
    ],
)
def test_a_step_that_has_to_be_dense_says_why(fields: dict[str, Any], reason: str) -> None:
    sae = make("batchtopk", [8, 8], **fields)
    found = forward.dense_reason(sae, torch.zeros(4, 16), sae.k_now / N_LATENTS if "k" in fields else 0.01)
    assert found is not None
    assert reason in found


@every_sparse
def test_a_crosscoder_that_is_not_training_gives_the_codes_of_inference(sparse: pytest.MonkeyPatch, name: str) -> None:
    sae, x = make(name, [8, 8]), activations([8, 8])
    step(sae, x)  # measures a threshold
    sae.eval()
    torch.testing.assert_close(step(sae, x).feature_acts, sae.encode(x))


def test_hooks_inference_and_autocast_in_float16_see_the_dense_step() -> None:
    sae, x = make("batchtopk", [8, 8], dtype="float32"), torch.zeros(4, 16)
    assert forward.dense_reason(sae, x, 0.01) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert forward.dense_reason(sae, x, 0.01) is None
    with torch.autocast("cpu", dtype=torch.float16):
        assert "not to autocast's torch.float16" in str(forward.dense_reason(sae, x, 0.01))
    assert "one row a token" in str(forward.dense_reason(sae, x.view(2, 2, 16), 0.01))
    assert "not training" in str(forward.dense_reason(sae.eval(), x, 0.01))
    sae.train()
    sae.add_hook("hook_sae_acts_post", lambda acts, hook: acts)
    assert "a hook reads the codes" in str(forward.dense_reason(sae, x, 0.01))


def test_a_batch_of_which_much_is_active_takes_the_dense_step_of_the_relu_crosscoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sae, x = make("standard", [8, 8]), activations([8, 8])
    share = (sae.encode(x) > 0).double().mean().item()
    for limit, is_sparse in ((share, True), (share - 1e-6, False), (share / 4, False)):
        monkeypatch.setattr(forward, "MAX_ACTIVE_SHARE", limit)
        assert step(sae, x).feature_acts.is_sparse == is_sparse


@pytest.mark.parametrize("name", JUMPING)
def test_on_the_borders_of_the_window_thresholds_learn_as_in_the_dense_step(
    sparse: pytest.MonkeyPatch, name: str
) -> None:
    sae, x = make(name, [8, 8], jumprelu_bandwidth=2.0, pre_act_loss_coefficient=0.01), activations([8, 8]).round()
    with torch.no_grad():
        sae.W_enc.copy_((4 * sae.W_enc).round().clamp(-1, 1))
        sae.b_enc.zero_()
        sae.log_threshold.zero_()  # the threshold is 1, and its window is open at 0 and 2
    hidden_pre = sae.pre_activations(x)
    for border in (0, 1, 2):
        assert (hidden_pre == border).sum() > 20
    here, there = both_steps(sparse, sae, x, dead_latents(0))
    assert_equal_steps(here, there)
    assert (here[0].feature_acts.to_dense() > 0).equal(hidden_pre > 1)
    assert here[0].feature_acts._nnz() == (hidden_pre > 0).sum()


@pytest.mark.parametrize("name", JUMPING)
def test_jumprelu_takes_the_sparse_step_once_few_pairs_reach_the_window(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sae, x = make(name, [8, 8], jumprelu_bandwidth=0.5), activations([8, 8])
    share = (sae.pre_activations(x) > sae.log_threshold.exp() - 0.25).double().mean().item()
    for limit, is_sparse in ((share, True), (share - 1e-6, False)):
        monkeypatch.setattr(forward, "MAX_ACTIVE_SHARE", limit)
        assert step(sae, x).feature_acts.is_sparse == is_sparse


@every_sparse
def test_a_bias_that_is_not_subtracted_gets_no_gradient_from_the_encoder(name: str) -> None:
    sae, x = make(name, [8, 8]), activations([8, 8])
    assert sae.process_sae_in(x) is x
    sae.cfg.apply_b_dec_to_input = True
    torch.testing.assert_close(sae.process_sae_in(x), TrainingSAE.process_sae_in(sae, x), rtol=0, atol=0)
