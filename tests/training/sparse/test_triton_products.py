"""The kernels for CUDA, interpreted, against sums written out over the dense matrix of codes."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sae_lens_crosscoder.training.sparse import products
from sae_lens_crosscoder.training.sparse.autograd import decode_pairs, encode_pairs
from sae_lens_crosscoder.training.sparse.gradient_memory import GradientMemory
from sae_lens_crosscoder.training.sparse.pairs import ActivePairs

NAMES = ("_weighted_sums", "_dots")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
# (rows, latents, width, pairs): widths and numbers of pairs that fill no block, exactly one, and several
SHAPES = [(1, 1, 1, 1), (3, 5, 7, 4), (6, 4, 128, 24), (9, 300, 129, 50), (5, 8, 261, 13), (4, 6, 16, 0)]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The kernels, which the products take in this test."""
    pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux)")
    module = importlib.import_module("sae_lens_crosscoder.training.sparse.triton_products")
    monkeypatch.setattr(products, "kernels_of", lambda device_type: module)
    return module


def some_pairs(n_rows: int, n_latents: int, n_pairs: int) -> ActivePairs:
    """Random pairs; with few of them, some rows and latents have none and some latents are active on several rows."""
    return ActivePairs(torch.randperm(n_rows * n_latents)[:n_pairs].sort().values.to(DEVICE), n_rows, n_latents)


def codes_of(pairs: ActivePairs, values: torch.Tensor) -> torch.Tensor:
    dense = values.new_zeros(pairs.n_rows * pairs.n_latents)
    return dense.index_put((pairs.flat,), values).view(pairs.n_rows, pairs.n_latents)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_dense_matrices(
    kernels: ModuleType, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    n_rows, n_latents, d, n_pairs = shape
    pairs = some_pairs(n_rows, n_latents, n_pairs)
    values = torch.randn(n_pairs, dtype=dtype, device=DEVICE)
    of_rows = torch.randn(n_rows, d, dtype=dtype, device=DEVICE)
    of_latents = torch.randn(n_latents, d, dtype=dtype, device=DEVICE)
    codes = codes_of(pairs, values)
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(products.sums_by_row(pairs, values, of_latents), codes @ of_latents, **close)
    torch.testing.assert_close(products.sums_by_latent(pairs, values, of_rows), codes.T @ of_rows, **close)
    expected = (of_rows @ of_latents.T)[pairs.rows, pairs.latents]
    torch.testing.assert_close(products.dot_products(pairs, of_rows, of_latents), expected, **close)


def test_a_latent_that_is_active_on_every_row_and_one_that_never_is(kernels: ModuleType) -> None:
    pairs = ActivePairs(torch.tensor([0, 3, 6, 8], device=DEVICE), 3, 3)  # latent 0 on all rows, 1 on none, 2 on row 2
    vectors = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]], device=DEVICE)
    values = torch.tensor([1.0, 0.5, 2.0, -1.0], device=DEVICE)
    assert products.sums_by_latent(pairs, values, vectors).tolist() == [[8.0, 80.0], [0.0, 0.0], [-3.0, -30.0]]
    assert products.sums_by_row(pairs, values, vectors).tolist() == [[1.0, 10.0], [0.5, 5.0], [-1.0, -10.0]]
    assert products.dot_products(pairs, vectors, vectors).tolist() == [101.0, 202.0, 303.0, 909.0]


def test_vectors_may_be_stored_in_any_order(kernels: ModuleType) -> None:
    pairs = some_pairs(5, 6, 11)
    values, by_columns = torch.randn(22, device=DEVICE)[::2], torch.randn(9, 6, device=DEVICE).T
    expected = codes_of(pairs, values) @ by_columns
    torch.testing.assert_close(products.sums_by_row(pairs, values, by_columns), expected)
    dots = products.dot_products(pairs, by_columns[:5], by_columns)
    torch.testing.assert_close(dots, (by_columns[:5] @ by_columns.T)[pairs.rows, pairs.latents])


def test_gradients_of_encoder_and_decoder_are_those_of_finite_differences(kernels: ModuleType) -> None:
    pairs = some_pairs(4, 5, 9)
    x, W_enc, b_enc, W_dec = (
        torch.randn(shape, dtype=torch.float64, device=DEVICE, requires_grad=True)
        for shape in ((4, 3), (3, 5), (5,), (5, 3))
    )

    def reconstruction(*weights: torch.Tensor) -> torch.Tensor:
        x, W_enc, b_enc, W_dec = weights
        values = (x @ W_enc + b_enc)[pairs.rows, pairs.latents].detach()
        memory = GradientMemory()
        return decode_pairs(pairs, encode_pairs(pairs, values, x, W_enc, b_enc, memory), W_dec, memory)

    assert torch.autograd.gradcheck(reconstruction, (x, W_enc, b_enc, W_dec))


COMPILE = """
import inspect
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sae_lens_crosscoder.training.sparse import triton_products

NUMBERS = {"members": "*i64", "starts": "*i64", "rows": "*i64", "latents": "*i64"}
NUMBERS |= {"n_groups": "i32", "n_pairs": "i32", "d": "i32"}
CONSTANTS = {"PAIRS": 4, "COLUMNS": 128}
for kernel in (triton_products._weighted_sums, triton_products._dots):
    for real in ("fp32", "fp64"):
        types = {name: NUMBERS.get(name, "*" + real) for name in inspect.signature(kernel.fn).parameters}
        source = ASTSource(kernel, types | dict.fromkeys(CONSTANTS, "constexpr"), CONSTANTS)
        for capability in (80, 90):
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            print(kernel.fn.__name__, real, capability, len(compiled.asm["cubin"]) > 1000)
"""


def test_the_kernels_compile_for_gpus_that_are_not_there(tmp_path: Path) -> None:
    """The interpreter takes programs that the compiler does not."""
    pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux)")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join(entry for entry in sys.path if entry)
    run = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    expected = [f"{name} {real} {cc} True" for name in NAMES for real in ("fp32", "fp64") for cc in (80, 90)]
    assert run.stdout.splitlines() == expected


def test_cuda_takes_the_kernels_and_does_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    chosen = products.kernels_of.__wrapped__
    assert chosen("cuda").__name__.endswith("triton_products")
    assert chosen("cpu").__name__.endswith("bag_products")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert chosen("cuda").__name__.endswith("bag_products")
