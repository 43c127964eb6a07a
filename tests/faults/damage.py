"""Runs of a few seconds into which the tests of this folder bring faults, and what they have to end in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers import batchtopk_config, run_config, tiny_pair, tiny_tokenizer, token_dataset
from safetensors.torch import load_file

from sae_lens_crosscoder import CrosscoderTrainingRunner

N_STEPS = 24
N_CHECKPOINTS = 3


def train(folder: Path, data: Any = None, model: Any = None, **fields: Any) -> None:
    """A run in float64, or what is left of it."""
    values: dict[str, Any] = {
        "dtype": "float64",
        "training_tokens": 64 * N_STEPS,
        "n_checkpoints": N_CHECKPOINTS,
        "resume_from_checkpoint": "auto",
        "stream_retry_seconds": 0.01,
    }
    cfg = run_config(fields.pop("sae", None) or batchtopk_config(dtype="float64"), folder, **{**values, **fields})
    pair = model or tiny_pair(dtype=torch.float64, tokenizer=tiny_tokenizer())
    torch.manual_seed(5)  # after the models, whose making draws numbers as well
    CrosscoderTrainingRunner(cfg, token_dataset(90) if data is None else data, pair).run()


def result(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a run saved, and how often its latents fired."""
    files = (folder / "output" / f"{name}.safetensors" for name in ("sae_weights", "sparsity"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def checkpoints(folder: Path) -> list[int]:
    """The tokens of the checkpoints of a run, which all have to be whole."""
    return sorted(int(path.name) for path in folder.glob("checkpoints/*/*"))


def assert_nothing_lost(folder: Path, expected: dict[str, torch.Tensor], **fields: Any) -> None:
    """Start the run again: it has to end in the unbroken run's weights, to the last bit, and leave nothing behind."""
    left = [path.name for path in folder.rglob(".*.tmp*")]
    assert left == []
    train(folder, **fields)
    found = result(folder)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), f"{name} differs from the unbroken run"
    curve = (folder / "output" / "training_curve.csv").read_text().splitlines()
    assert len(curve) == 1 + N_STEPS
