"""Whole runs and whole steps: the same losses as the dense path, and no tensor of all codes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from sae_lens import SAETrainer
from step_trainers import CONFIGS, batch_of, trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sae_lens_crosscoder.errors import DivergedError
from sae_lens_crosscoder.training.sparse import forward


def losses(name: str, n_steps: int) -> tuple[list[float], int, int]:
    """The loss of every step, how many were sparse, and how many had dead latents."""
    fitted = trainer(name)
    seen: list[float] = []
    n_sparse = n_dead = 0
    for step in range(n_steps):
        n_dead += bool(fitted.dead_neurons.any())
        output = fitted.step(batch_of(step))
        fitted.n_training_steps += 1
        seen.append(output.loss.item())
        n_sparse += output.feature_acts.is_sparse
    return seen, n_sparse, n_dead


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "jumprelu"])
def test_a_run_of_500_steps_ends_at_the_loss_of_the_dense_run(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(forward, "MAX_ACTIVE_SHARE", 1.0)
    here, n_sparse, n_dead = losses(name, 500)
    assert n_sparse == 500
    assert n_dead > 0 or name == "standard"
    monkeypatch.setattr(forward, "MAX_ACTIVE_SHARE", -1.0)
    there, n_sparse, _ = losses(name, 500)
    assert n_sparse == 0
    assert here[-1] == pytest.approx(there[-1], rel=1e-9)
    assert here[-1] < 0.8 * here[0]


@pytest.mark.slow
def test_every_step_of_a_jumprelu_run_is_the_dense_step_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its runs are chaotic: two dense ones that begin 1e-15 apart differ by 1e-3 at step 321, since a code that rounding
    # lifts over its threshold jumps. So each sparse step starts where the dense run is.
    dense, sparse = trainer("jumprelu"), trainer("jumprelu")
    for step in range(500):
        sparse.sae.load_state_dict(dense.sae.state_dict())
        sparse.optimizer.load_state_dict(copy.deepcopy(dense.optimizer.state_dict()))
        sparse.n_training_steps = dense.n_training_steps = step
        sparse.n_forward_passes_since_fired = dense.n_forward_passes_since_fired.clone()
        seen: list[float] = []
        for fitted, limit in ((sparse, 1.0), (dense, -1.0)):
            monkeypatch.setattr(forward, "MAX_ACTIVE_SHARE", limit)
            output = fitted.step(batch_of(step))
            assert output.feature_acts.is_sparse == (limit > 0)
            seen.append(output.loss.item())
        assert seen[0] == pytest.approx(seen[1], rel=1e-12)
    for key, weights in sparse.sae.state_dict().items():
        torch.testing.assert_close(weights, dense.sae.state_dict()[key], rtol=1e-10, atol=1e-12, msg=key)


class LargestTensor(TorchDispatchMode):
    """Notes the largest number of elements of any tensor that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.n_elements = 0
        self.n_operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.n_operations += 1
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and not leaf.is_sparse:
                self.n_elements = max(self.n_elements, leaf.numel())
        return result


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka"])
def test_a_step_holds_no_tensor_of_all_codes(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    n_tokens, d_sae = 2048, 1024
    fitted = (
        trainer(name, d_sae=d_sae, batch=n_tokens, dtype="float32", k_start=None)
        if name != "topk"
        else trainer(name, d_sae=d_sae, batch=n_tokens, dtype="float32")
    )
    for step in range(3):
        with LargestTensor() as seen:
            assert fitted.step(batch_of(step, n_tokens).float()).feature_acts.is_sparse
        assert seen.n_elements <= 2 * 256 * d_sae
    monkeypatch.setattr(forward, "MAX_ACTIVE_SHARE", -1.0)
    with LargestTensor() as seen:
        fitted.step(batch_of(3, n_tokens).float())
    assert seen.n_elements >= n_tokens * d_sae


@pytest.mark.parametrize("limit", [1.0, -1.0], ids=["sparse", "dense"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_latent_whose_weights_are_no_number_stops_the_run(
    monkeypatch: pytest.MonkeyPatch, name: str, limit: float
) -> None:
    monkeypatch.setattr(forward, "MAX_ACTIVE_SHARE", limit)
    fitted = trainer(name, d_sae=512)
    fitted.data_provider = iter([batch_of(0), batch_of(1)])
    with torch.no_grad():
        fitted.sae.W_enc[:, 3] = torch.nan
    with pytest.raises(DivergedError, match="diverged by step 1"):
        fitted.fit()


def test_firing_is_counted_alike_on_both_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[tuple[torch.Tensor, torch.Tensor]] = []
    for limit in (1.0, -1.0):
        monkeypatch.setattr(forward, "MAX_ACTIVE_SHARE", limit)
        fitted = trainer("batchtopk", d_sae=512)
        for step in range(4):
            fitted.step(batch_of(step))
        counts.append((fitted.act_freq_scores.clone(), fitted.n_forward_passes_since_fired))
        row = fitted._curve_row(fitted.step(batch_of(9)))
        assert row["metrics/l0"] == pytest.approx(6.0)
    assert torch.equal(counts[0][0], counts[1][0])
    assert torch.equal(counts[0][1], counts[1][1])
    assert counts[0][0].sum() == 4 * 6 * 64
    assert counts[0][1].unique().numel() > 2


@pytest.mark.parametrize("limit", [1.0, -1.0], ids=["sparse", "dense"])
@pytest.mark.parametrize("name", CONFIGS)
def test_steps_and_counters_are_those_of_saelens_trainer(
    monkeypatch: pytest.MonkeyPatch, name: str, limit: float
) -> None:
    monkeypatch.setattr(forward, "MAX_ACTIVE_SHARE", limit)
    here, for_there = trainer(name, d_sae=512), trainer(name, d_sae=512)
    there: SAETrainer[Any, Any] = SAETrainer(for_there.cfg, for_there.sae, iter(()))
    for step in range(5):
        for fitted in (here, there):
            assert fitted.step(batch_of(step)).feature_acts.is_sparse == (limit > 0)
            fitted.n_training_steps += 1
    for key, weights in here.sae.state_dict().items():
        torch.testing.assert_close(weights, there.sae.state_dict()[key], rtol=1e-10, atol=1e-12, msg=key)
    for counter in ("act_freq_scores", "n_forward_passes_since_fired"):
        assert torch.equal(getattr(here, counter), getattr(there, counter)), counter
    assert here.n_frac_active_samples == there.n_frac_active_samples == 5 * 64
    assert here.optimizer.param_groups[0]["lr"] == there.optimizer.param_groups[0]["lr"]
    assert here.get_coefficients() == there.get_coefficients()
