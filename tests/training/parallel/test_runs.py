from __future__ import annotations

import csv
import itertools
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel import runs
from parallel.launch import torchrun
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The data set ended")]


def several(n_processes: int, cases: dict[str, dict[str, Any]], folder: Path) -> None:
    file = folder / "cases.json"
    file.write_text(json.dumps(cases))
    ended = torchrun(n_processes, Path(runs.__file__), file, folder)
    assert ended.returncode == 0, ended.stderr


def read_table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def assert_same_output(here: Path, there: Path) -> None:
    for filename in ("sae_weights.safetensors", "sparsity.safetensors"):
        mine, other = (load_file(folder / "output" / filename) for folder in (here, there))
        assert mine.keys() == other.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    for filename in ("training_curve.csv", "evaluations.csv"):
        mine, other = (read_table(folder / "output" / filename) for folder in (here, there))
        assert len(mine) == len(other)
        for row, other_row in zip(mine, other, strict=True):
            for name, value in row.items():
                assert float(other_row[name]) == pytest.approx(float(value), rel=1e-6, abs=1e-9), (filename, name)
    metrics = [json.loads((folder / "output" / "metrics.json").read_text()) for folder in (here, there)]
    assert metrics[1]["explained_variance"] == pytest.approx(metrics[0]["explained_variance"], rel=1e-9)
    assert metrics[1]["l0"] == metrics[0]["l0"]
    assert metrics[1]["training"] == metrics[0]["training"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process with as many data shards."""
    folder = tmp_path_factory.mktemp("alone")
    torch.set_default_dtype(torch.float64)
    try:
        for name in runs.CONFIGS:
            runs.run({"architecture": name}, folder / name)
    finally:
        torch.set_default_dtype(torch.float32)
    return folder


@pytest.mark.parametrize("n_processes", [2, 4])
def test_a_run_of_several_processes_gives_the_files_of_one(n_processes: int, alone: Path, tmp_path: Path) -> None:
    cases = {
        f"{name} {layout}": {"architecture": name, "fields": {"dictionary_layout": layout}}
        for name in runs.CONFIGS
        for layout in ("replicated", "sharded")
    }
    several(n_processes, cases, tmp_path)
    for name, case in cases.items():
        assert_same_output(alone / case["architecture"], tmp_path / name)


@pytest.mark.parametrize("layouts", [("sharded", "sharded"), ("sharded", "replicated"), ("replicated", "sharded")])
def test_a_run_of_four_processes_is_resumed_by_two(layouts: tuple[str, str], alone: Path, tmp_path: Path) -> None:
    first, second = layouts
    fields = {"dictionary_layout": first}
    several(4, {"run": {"architecture": "batchtopk", "stops_after": 7, "fields": fields}}, tmp_path)
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("*/*")
    assert checkpoint.name == str(7 * 64)
    fields = {"dictionary_layout": second, "resume_from_checkpoint": "auto"}
    several(2, {"run": {"architecture": "batchtopk", "fields": fields}}, tmp_path)
    assert_same_output(alone / "batchtopk", tmp_path / "run")


def expected_bytes(architecture: str, layout: str, n_processes: int) -> int:
    """The table of docs/scaling.md, at the size of these runs."""
    s, B, D, F = 8, 64, 32, 32
    counts_of_batch = 16_384 * math.ceil(8 * s / 11) + 16
    counts_of_tokens = (128 * 2 * s + 16) * B
    stop = 8
    if layout == "replicated":
        n_weights = 2 * F * D + F + D + (2 * F if architecture == "gated" else 0)
        return s * n_weights + 8 * F + stop + (counts_of_batch + 8 if architecture == "batchtopk" else 0)
    always = s * B * D // n_processes + s * B * D + stop + s
    own = {
        "batchtopk": counts_of_batch + 8 + 8,
        "topk": counts_of_tokens + 8,
        "standard": s,
        "gated": s + s * B * D,
    }
    return always + own[architecture]


@pytest.mark.parametrize("n_processes", [2, 4])
def test_a_step_sends_as_many_bytes_as_the_documentation_says(n_processes: int, tmp_path: Path) -> None:
    cases = {
        f"{name} {layout}": {
            "architecture": name,
            "counts": True,
            "n_steps": 4,
            "log_every": 100,
            "fields": {"dictionary_layout": layout, "n_eval_batches": 0},
        }
        for name in runs.COUNTED_CONFIGS
        for layout in ("replicated", "sharded")
    }
    several(n_processes, cases, tmp_path)
    for name in cases:
        for rank in range(n_processes):
            before_steps = json.loads((tmp_path / name / f"bytes_{rank}.json").read_text())
            sent = {later - earlier for earlier, later in itertools.pairwise(before_steps)}
            assert sent == {expected_bytes(*name.split(), n_processes)}, (name, rank)


def test_a_lost_process_ends_the_run_with_an_error_and_it_is_resumed(alone: Path, tmp_path: Path) -> None:
    case = {"architecture": "standard", "fields": {"dictionary_layout": "sharded", "n_checkpoints": 3}}
    file = tmp_path / "cases.json"
    file.write_text(json.dumps({"run": {**case, "killed_at": 9}}))
    started = time.monotonic()
    ended = torchrun(2, Path(runs.__file__), file, tmp_path)
    assert ended.returncode != 0
    assert "SIGKILL" in ended.stderr
    assert time.monotonic() - started < 600  # process_timeout_seconds is 1,800
    assert not (tmp_path / "run" / "output" / "cfg.json").exists()
    case["fields"]["resume_from_checkpoint"] = "auto"
    several(1, {"run": case}, tmp_path)
    assert_same_output(alone / "standard", tmp_path / "run")


def test_all_processes_hear_that_a_run_is_finished(alone: Path, tmp_path: Path) -> None:
    shutil.copytree(alone / "standard", tmp_path / "run")
    fields = {"resume_from_checkpoint": "auto"}
    several(2, {"run": {"architecture": "standard", "is_finished": True, "fields": fields}}, tmp_path)


def test_several_processes_make_up_for_the_evaluation_of_a_finished_run(alone: Path, tmp_path: Path) -> None:
    shutil.copytree(alone / "standard", tmp_path / "run")
    (tmp_path / "run" / "output" / "metrics.json").unlink()
    fields = {"resume_from_checkpoint": "auto"}
    several(2, {"run": {"architecture": "standard", "is_finished": True, "fields": fields}}, tmp_path)
    assert_same_output(alone / "standard", tmp_path / "run")


def test_a_process_that_hangs_ends_the_run_in_time_with_an_error_and_it_is_resumed(alone: Path, tmp_path: Path) -> None:
    fields = {"dictionary_layout": "sharded", "n_checkpoints": 3, "process_timeout_seconds": 10}
    case = {"architecture": "standard", "fields": fields}
    file = tmp_path / "cases.json"
    file.write_text(json.dumps({"run": {**case, "hangs_at": 9}}))
    ended = torchrun(2, Path(runs.__file__), file, tmp_path)
    assert ended.returncode != 0
    (said,) = (line for line in ended.stderr.splitlines() if "LostProcessError: " in line)
    assert "waited in vain for another one" in said
    assert "Timed out waiting 10000ms" in said
    case["fields"] = {**fields, "resume_from_checkpoint": "auto", "process_timeout_seconds": 1800}
    several(1, {"run": case}, tmp_path)
    assert_same_output(alone / "standard", tmp_path / "run")


def test_torchrun_starts_a_lost_run_anew_and_it_goes_on_from_its_checkpoint(alone: Path, tmp_path: Path) -> None:
    fields = {"dictionary_layout": "replicated", "n_checkpoints": 3, "resume_from_checkpoint": "auto"}
    file = tmp_path / "cases.json"
    file.write_text(json.dumps({"run": {"architecture": "standard", "killed_at": 9, "fields": fields}}))
    ended = torchrun(2, Path(runs.__file__), file, tmp_path, max_restarts=1)
    assert ended.returncode == 0, ended.stderr
    assert "The run goes on from" in ended.stderr
    assert_same_output(alone / "standard", tmp_path / "run")
