"""The step as it is made on CUDA, on the CPU: kernels interpreted, selection in fixed shapes, nothing read back."""

from __future__ import annotations

import importlib
from collections import Counter
from typing import Any

import pytest
import torch
from architectures import N_LATENTS, activations, gradients, make, step
from step_trainers import batch_of, trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sae_lens_crosscoder.training import trainer as trainer_module
from sae_lens_crosscoder.training.sparse import chunk_encoder, forward, products

SELECTING = ("topk", "batchtopk", "matryoshka")
SPARSE = (*SELECTING, "standard")
aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.bincount.default,  # on CUDA it reads the largest number to know its length
    aten._unique2.default,
    aten.equal.default,
    aten.lift_fresh.default,  # a tensor made of Python's numbers, which are copied to the device
}


class Reads(TorchDispatchMode):
    """Counts the operations for which a host waits for CUDA."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        takes_mask = func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default) and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in tree_leaves(args[1])
        )
        if func in WAITING or takes_mask:
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Tensors of the CPU go the way of those on CUDA but for the kernels; toy shapes take the sparse step."""
    monkeypatch.setattr(forward, "CHUNKED_DEVICES", ("cpu",))
    monkeypatch.setattr(trainer_module, "ASYNCHRONOUS_DEVICES", ("cpu",))
    monkeypatch.setattr(chunk_encoder, "_CHUNK", 8 * N_LATENTS)
    monkeypatch.setattr(forward, "MAX_ACTIVE_SHARE", 1.0)
    return monkeypatch


@pytest.fixture
def kernels(on_cuda: pytest.MonkeyPatch) -> None:
    """The kernels, interpreted."""
    pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux)")
    module = importlib.import_module("sae_lens_crosscoder.training.sparse.triton_products")
    on_cuda.setattr(products, "kernels_of", lambda device_type: module)


@pytest.mark.parametrize("bias", [0.0, -0.4, -100.0], ids=["", "few positive", "none positive"])
@pytest.mark.parametrize("name", SPARSE)
def test_losses_codes_and_gradients_are_those_of_the_dense_step(
    on_cuda: pytest.MonkeyPatch, kernels: None, name: str, bias: float
) -> None:
    sae, x = make(name, [8, 8]), activations([8, 8])
    with torch.no_grad():
        sae.b_enc.add_(bias)
    dead = torch.arange(N_LATENTS) % 3 == 0
    here, here_gradients = step(sae, x, dead), gradients(sae, x, dead)
    assert here.feature_acts.is_sparse
    on_cuda.setattr(forward, "MAX_ACTIVE_SHARE", -1.0)
    there, there_gradients = step(sae, x, dead), gradients(sae, x, dead)
    close: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(here.feature_acts.to_dense(), there.feature_acts, **close)
    for loss, expected in there.losses.items():
        torch.testing.assert_close(here.losses[loss], expected, **close)
    for parameter, expected in there_gradients.items():
        torch.testing.assert_close(here_gradients[parameter], expected, **close, msg=parameter)


@pytest.mark.parametrize("n_more", [0, 1, 5, 13])
@pytest.mark.parametrize("n_dead", [0, 1, 7])
@pytest.mark.parametrize("widths", [[8, 8], [2, 2]], ids=["fewer dead than revived", "more"])
def test_auxk_of_a_bound_is_that_of_the_dead_latents(widths: list[int], n_dead: int, n_more: int) -> None:
    sae, x = make("batchtopk", widths), activations(widths)
    dead = torch.randperm(N_LATENTS) < n_dead
    expected = step(sae, x, dead).losses["auxiliary_reconstruction_loss"], gradients(sae, x, dead)
    sae.n_dead_bound = n_dead + n_more
    found = step(sae, x, dead).losses["auxiliary_reconstruction_loss"], gradients(sae, x, dead)
    assert (expected[0] > 0) == (n_dead > 0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_reads_that_a_step_must_not_make_are_seen() -> None:
    x = torch.arange(4.0)
    with Reads() as reads:
        _ = x.sum().item(), x[x > 1], x.nonzero(), torch.bincount(x.long()), torch.tensor([1.0]), int(x.sum())
        x[x > 1] = 0
    assert sum(reads.counts.values()) >= 7


@pytest.mark.parametrize("name", SELECTING)
def test_a_step_reads_nothing_back(on_cuda: pytest.MonkeyPatch, name: str) -> None:
    fitted = trainer(name, dtype="float32")
    fitted.activation_scaler.scaling_factor = torch.tensor([1.0, 2.0])
    # The bound comes from a copy that has arrived (test_dead_bound.py); here it is one that always holds.
    on_cuda.setattr(fitted._dead_bound, "next", len)
    n_dead = 0
    for i in range(20):
        n_dead += int(fitted.dead_neurons.sum())
        x = batch_of(i).float()
        with Reads() as reads:
            assert fitted.step(x).feature_acts.is_sparse
        fitted.n_training_steps += 1
        assert reads.counts == ({} if i > 0 else {"aten.lift_fresh.default": 1})  # the scales, which stay there
    assert n_dead > 0


@pytest.mark.parametrize("name", SELECTING)
def test_a_run_has_the_losses_of_the_dense_run(on_cuda: pytest.MonkeyPatch, name: str) -> None:
    def losses() -> tuple[list[float], int]:
        fitted = trainer(name)
        seen: list[float] = []
        n_dead = 0
        for i in range(60):
            n_dead += bool(fitted.dead_neurons.any())
            seen.append(fitted.step(batch_of(i)).loss.item())
            fitted.n_training_steps += 1
        return seen, n_dead

    here, n_dead = losses()
    assert n_dead > 10
    on_cuda.setattr(forward, "MAX_ACTIVE_SHARE", -1.0)
    on_cuda.setattr(trainer_module, "ASYNCHRONOUS_DEVICES", ())
    assert here == pytest.approx(losses()[0], rel=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", SELECTING)
def test_a_step_on_a_gpu_is_the_dense_step_and_waits_for_nothing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(forward, "MAX_ACTIVE_SHARE", 1.0)
    sae, x = make(name, [8, 8]).to("cuda"), activations([8, 8]).cuda()
    dead = torch.zeros(N_LATENTS, dtype=torch.bool, device="cuda")
    sae.n_dead_bound = 0
    here = gradients(sae, x, dead)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients(sae, x, dead)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    monkeypatch.setattr(forward, "MAX_ACTIVE_SHARE", -1.0)
    for parameter, expected in gradients(sae, x, dead).items():
        torch.testing.assert_close(here[parameter], expected, rtol=1e-9, atol=1e-9, msg=parameter)
