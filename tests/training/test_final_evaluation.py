"""The evaluation of what a run saved, where it does not come to its end, and where it is made up for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import batchtopk_config, run_config, standard_config, tiny_pair, token_dataset
from sae_lens import LoggingConfig
from safetensors.torch import load_file

from sae_lens_crosscoder import CrosscoderTrainingRunner, PairedActivationsStore
from sae_lens_crosscoder.errors import ConfigError, FinishedError, MemoryFullError
from sae_lens_crosscoder.evals import CrosscoderEvaluator
from sae_lens_crosscoder.training.saved_run import SavedRun

pytestmark = pytest.mark.filterwarnings("ignore:The data set ended")


def train(folder: Path, config: Any = batchtopk_config, **fields: Any) -> None:
    torch.manual_seed(3)
    CrosscoderTrainingRunner(run_config(config(), folder, **fields), token_dataset(400), tiny_pair()).run()


def fail_in_evaluation(folder: Path, error: BaseException, **fields: Any) -> None:
    def failing(*_arguments: Any, **_named: Any) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CrosscoderEvaluator, "evaluate", failing)
        train(folder, **fields)


def metrics_in(folder: Path) -> Any:
    return json.loads((folder / "output" / "metrics.json").read_text())


def refuse(*_arguments: Any, **_named: Any) -> None:
    raise ConfigError("No step is made, so nothing is needed for one.")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError("of the models")])
def test_an_evaluation_without_memory_names_the_crosscoder_and_is_made_up_for(tmp_path: Path, error: Exception) -> None:
    train(tmp_path / "unbroken")
    with pytest.raises(MemoryFullError, match=r"of what was saved: .*output holds the crosscoder, whole; only"):
        fail_in_evaluation(tmp_path, error)
    weights = load_file(tmp_path / "output" / "sae_weights.safetensors")
    with pytest.raises(FinishedError, match=r"The run is finished: .*Only its metrics.json is missing"):
        train(tmp_path)
    with pytest.raises(FinishedError, match=r"finished but for its evaluation, which is in .*metrics.json now"):
        train(tmp_path, resume_from_checkpoint="auto")
    assert metrics_in(tmp_path) == metrics_in(tmp_path / "unbroken")
    assert metrics_in(tmp_path)["training"]["n_steps"] == 12
    again = load_file(tmp_path / "output" / "sae_weights.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    with pytest.raises(FinishedError, match=r"this very configuration\. Raise training_tokens"):
        train(tmp_path, resume_from_checkpoint="auto")


def test_the_command_that_evaluates_fewer_sequences_at_once_takes_no_other_ones(tmp_path: Path) -> None:
    with pytest.raises(MemoryFullError) as full:
        fail_in_evaluation(tmp_path, MemoryError("of the models"), n_eval_batches=3, eval_batch_size_prompts=5)
    out = tmp_path / "output"
    command = re.search(rf"sae-lens-crosscoder eval {out} (.*) --out {out / 'metrics.json'}$", str(full.value))
    assert command is not None
    fields = {name[2:]: int(value) for name, value in re.findall(r"(--\w+) (\d+)", command[1])}
    assert fields == {"eval_batch_size_prompts": 2, "n_eval_batches": 7}
    run = SavedRun(out)
    (before,), (now,) = (
        PairedActivationsStore.from_config(tiny_pair(), run.config(changed), token_dataset(400)).eval_sequences.values()
        for changed in ({}, fields)
    )
    assert torch.equal(now, before[:14])
    assert len(before) == 15


def test_a_run_that_is_ended_in_its_evaluation_needs_nothing_but_its_models_to_make_up_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "parent", standard_config)
    fields: dict[str, Any] = {"from_pretrained_path": str(tmp_path / "parent" / "output"), "config": standard_config}
    with pytest.raises(KeyboardInterrupt):
        fail_in_evaluation(tmp_path, KeyboardInterrupt(), **fields)
    shutil.rmtree(tmp_path / "parent")
    monkeypatch.setattr("sae_lens_crosscoder.training.runner.check_needs", refuse)
    with pytest.raises(FinishedError, match="finished but for its evaluation"):
        train(tmp_path, resume_from_checkpoint="auto", **fields)
    assert metrics_in(tmp_path)["sources"]["chat"]["kl_div_score"] <= 1


def test_another_error_of_the_evaluation_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fail_in_evaluation(tmp_path, RuntimeError("mat1 and mat2"))


def test_no_figure_of_a_crosscoder_that_is_replaced_stands_beside_the_new_one(tmp_path: Path) -> None:
    often = LoggingConfig(log_to_wandb=False, wandb_log_frequency=1, eval_every_n_wandb_logs=4)
    train(tmp_path, logger=often)
    (tmp_path / "output" / "notes.txt").write_text("of the user")
    assert {"metrics.json", "evaluations.csv"} <= {path.name for path in (tmp_path / "output").iterdir()}
    with pytest.raises(MemoryFullError):
        fail_in_evaluation(tmp_path, MemoryError("of the models"), overwrite_output=True, lr=2e-3)
    names = {path.name for path in (tmp_path / "output").iterdir()}
    assert not {"metrics.json", "evaluations.csv"} & names
    assert {"notes.txt", "training_curve.csv"} <= names
