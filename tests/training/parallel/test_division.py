from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES
from parallel import steps
from parallel.launch import torchrun

from sae_lens_crosscoder.training.parallel.division import Division

N_STEPS, N_MANY_STEPS = 6, 50
DESIGNATED = {"n_shared_latents": 7, "n_exclusive_latents": [4, 2]}
CASES: dict[str, dict[str, Any]] = {
    **{name: {"architecture": name, "n_steps": N_MANY_STEPS} for name in ARCHITECTURES},
    "designated": {"architecture": "standard", "n_steps": N_STEPS, "fields": DESIGNATED},
    "k_shared": {
        "architecture": "batchtopk",
        "n_steps": N_STEPS,
        "fields": {"n_shared_latents": 3, "k": 3, "k_shared": 1},
    },
    "sparse batchtopk": {"architecture": "batchtopk", "n_steps": N_STEPS, "fields": {"k": 1}},
    "sparse k_shared": {
        "architecture": "batchtopk",
        "n_steps": N_STEPS,
        "fields": {"n_shared_latents": 3, "k": 1, "k_shared": 0.5},
    },
    "sparse topk": {"architecture": "topk", "n_steps": N_STEPS, "fields": {"k": 1}},
    "sparse matryoshka": {"architecture": "matryoshka", "n_steps": N_STEPS, "fields": {"k": 1}},
    "dead batchtopk": {"architecture": "batchtopk", "n_steps": N_STEPS, "n_dead_of_five": 4},
    "few dead": {"architecture": "batchtopk", "n_steps": N_STEPS, "n_dead_of_five": 1},
    "dead sparse topk": {"architecture": "topk", "n_steps": N_STEPS, "n_dead_of_five": 4, "fields": {"k": 1}},
    "ties of batchtopk": {"architecture": "batchtopk", "n_steps": 1, "alike": True, "fields": {"k": 2.3}},
    "ties of sparse batchtopk": {"architecture": "batchtopk", "n_steps": 1, "alike": True, "fields": {"k": 0.7}},
    "ties of topk": {"architecture": "topk", "n_steps": 1, "alike": True, "n_dead_of_five": 4},
    "ties of sparse topk": {"architecture": "topk", "n_steps": 1, "alike": True, "fields": {"k": 1}},
    "joint norm": {"architecture": "batchtopk", "n_steps": N_STEPS, "fields": {"decoder_norm": "joint"}},
    "no norm": {"architecture": "topk", "n_steps": N_STEPS, "fields": {"decoder_norm": "none"}},
    "difference": {"architecture": "batchtopk", "n_steps": N_STEPS, "fields": {"difference_weight": -0.5}},
}


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[list[float], dict[str, torch.Tensor]]]:
    results: dict[str, tuple[list[float], dict[str, torch.Tensor]]] = {}
    for name, case in CASES.items():
        sae = steps.crosscoder(case)
        losses = steps.train(sae, Division(), case)
        results[name] = (losses, steps.whole_weights(sae))
    return results


@pytest.mark.slow
@pytest.mark.parametrize("n_processes", [2, 4])
@pytest.mark.parametrize("division", ["replicated", "sharded"])
def test_several_processes_train_to_the_weights_of_one(
    n_processes: int, division: str, alone: dict[str, tuple[list[float], dict[str, torch.Tensor]]], tmp_path: Path
) -> None:
    cases = tmp_path / "cases.json"
    cases.write_text(json.dumps({name: {**case, "division": division} for name, case in CASES.items()}))
    ended = torchrun(n_processes, Path(steps.__file__), cases, tmp_path)
    assert ended.returncode == 0, ended.stderr
    for name, (losses, weights) in alone.items():
        there = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        torch.testing.assert_close(there["losses"], losses, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
        assert there["weights"].keys() == weights.keys()
        for weight, value in weights.items():
            torch.testing.assert_close(
                there["weights"][weight], value, rtol=0, atol=1e-12, msg=lambda m, n=name, w=weight: f"{n} {w}: {m}"
            )
