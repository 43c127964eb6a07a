"""Gradients that are written into the memory of the last step's."""

from __future__ import annotations

import pytest
import torch
from architectures import activations, make, step
from step_trainers import batch_of, trainer

from sae_lens_crosscoder.training.sparse import forward
from sae_lens_crosscoder.training.sparse.gradient_memory import GradientMemory


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka", "standard", "jumprelu-tanh"])
def test_gradients_do_not_depend_on_what_the_memory_holds(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(forward, "MAX_ACTIVE_SHARE", 1.0)
    sae, x = make(name, [8, 8]), activations([8, 8])
    step(sae, x).loss.backward()
    expected = {key: weights.grad.clone() for key, weights in sae.named_parameters()}
    for weights in (sae.W_enc, sae.W_dec):
        weights.grad.fill_(torch.nan)
    sae.gradient_memory.keep({"W_enc": sae.W_enc, "W_dec": sae.W_dec})
    sae.zero_grad()
    step(sae, x).loss.backward()
    for key, weights in sae.named_parameters():
        assert torch.equal(weights.grad, expected[key]), key


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka"])
def test_a_run_writes_gradients_where_those_of_the_last_step_were(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(forward, "MAX_ACTIVE_SHARE", 1.0)
    fitted = trainer(name)
    places: list[tuple[int, int]] = []

    def note(*_: object) -> None:
        places.append((fitted.sae.W_enc.grad.data_ptr(), fitted.sae.W_dec.grad.data_ptr()))

    fitted.optimizer.register_step_pre_hook(note)
    for i in range(4):
        fitted.step(batch_of(i))
    assert len(places) == 4
    assert places[1] == places[2] == places[3]


def test_memory_is_given_once_and_only_for_the_weight_that_it_fits() -> None:
    memory = GradientMemory()
    weight = torch.nn.Parameter(torch.zeros(3, 5))
    weight.grad = spent = torch.ones(3, 5)
    memory.keep({"W_dec": weight})
    assert weight.grad is None
    assert memory.take("W_enc", weight) is None
    assert memory.take("W_dec", weight) is spent
    assert memory.take("W_dec", weight) is None
    for other in (torch.zeros(5, 3), torch.zeros(5, 3).T, torch.zeros(3, 5, dtype=torch.float64)):
        weight.grad = spent
        memory.keep({"W_dec": weight})
        assert memory.take("W_dec", other) is None


def test_a_dense_step_gives_the_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = trainer("batchtopk")
    for limit, is_held in ((1.0, True), (-1.0, False), (1.0, True)):
        monkeypatch.setattr(forward, "MAX_ACTIVE_SHARE", limit)
        fitted.step(batch_of(0))
        memory = fitted.sae.gradient_memory
        assert (memory.take("W_dec", fitted.sae.W_dec) is not None) == is_held
