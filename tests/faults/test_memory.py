"""Memory that ends while the models run, in the step, or in an evaluation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.damage import N_STEPS, assert_nothing_lost, checkpoints, result, train
from sae_lens import LoggingConfig

from sae_lens_crosscoder import CrosscoderTrainer, PairedActivationsStore
from sae_lens_crosscoder.activations.shuffle_buffer import ShuffleBuffer
from sae_lens_crosscoder.errors import MemoryFullError
from sae_lens_crosscoder.evals import CrosscoderEvaluator
from sae_lens_crosscoder.training.batchtopk_crosscoder import BatchTopKTrainingCrosscoder
from sae_lens_crosscoder.training.failing import is_out_of_memory

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The data set ended")]

ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: 8 bytes"),
    "python": MemoryError("of the models"),
}
every_error = pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())


def fails_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int, error: Exception) -> None:
    """Let a function fail when it is called for the so many-th time, after its work where it has any."""
    function, n_calls = getattr(owner, name), [0]

    def failing(*arguments: Any, **named: Any) -> Any:
        n_calls[0] += 1
        made = function(*arguments, **named)
        if n_calls[0] == number:
            raise error
        return made

    monkeypatch.setattr(owner, name, failing)


def test_what_says_that_memory_is_full_is_known() -> None:
    assert all(map(is_out_of_memory, ERRORS.values()))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


@every_error
@pytest.mark.parametrize("n_prefetched", [0, 2])
def test_models_that_do_not_fit_cost_nothing_and_the_field_to_lower_is_named(
    tmp_path: Path, unbroken: dict[str, torch.Tensor], error: Exception, n_prefetched: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fails_at(patch, PairedActivationsStore, "harvest", 24, error)
        with pytest.raises(MemoryFullError, match=r"stopped after step \d+.*Lower store_batch_size_prompts.*goes on"):
            train(tmp_path, prefetch_llm_batches=n_prefetched)
    assert_nothing_lost(tmp_path, unbroken)


def test_the_run_goes_on_with_the_field_that_was_lowered(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fails_at(patch, PairedActivationsStore, "harvest", 24, ERRORS["cuda"])
        with pytest.raises(MemoryFullError) as full:
            train(tmp_path)
    told = re.search(
        r"--resume auto goes on from it, --resume (\S+) also with fields that were changed\.$", str(full.value)
    )
    assert told is not None
    train(tmp_path, store_batch_size_prompts=2, resume_from_checkpoint=told[1])
    curve = (tmp_path / "output" / "training_curve.csv").read_text().splitlines()
    assert [int(row.partition(",")[0]) for row in curve[1:]] == list(range(1, N_STEPS + 1))


@pytest.mark.parametrize("name", ["add", "next_batch"])
def test_a_buffer_without_memory_costs_nothing(tmp_path: Path, unbroken: dict[str, torch.Tensor], name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if name == "add":
            fails_at(patch, ShuffleBuffer, "_write", 20, ERRORS["cuda"])
        else:
            fails_at(patch, torch.Tensor, "index_select", 60, ERRORS["cuda"])
        with pytest.raises(MemoryFullError, match="Lower store_batch_size_prompts"):
            train(tmp_path)
    assert_nothing_lost(tmp_path, unbroken)


@every_error
@pytest.mark.parametrize("where", ["forward", "backward", "clipping"])
def test_a_step_that_does_not_fit_costs_nothing_and_the_field_to_lower_is_named(
    tmp_path: Path, unbroken: dict[str, torch.Tensor], error: Exception, where: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if where == "forward":  # the threshold's moving average has been updated by then
            fails_at(patch, BatchTopKTrainingCrosscoder, "update_topk_threshold", 12, error)
        elif where == "backward":
            fails_at(patch, torch.Tensor, "backward", 12, error)
        else:  # which latents fired has been counted by then
            fails_at(patch, torch.nn.utils, "get_total_norm", 12, error)
        with pytest.raises(MemoryFullError, match=r"stopped after step 11\..*Lower train_batch_size_tokens.*goes on"):
            train(tmp_path)
    assert 64 * 11 in checkpoints(tmp_path)
    assert_nothing_lost(tmp_path, unbroken)


def test_the_first_step_that_does_not_fit_has_nothing_to_lose(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fails_at(patch, torch.Tensor, "backward", 1, ERRORS["cuda"])
        with pytest.raises(MemoryFullError, match=r"Lower train_batch_size_tokens.*no step had been made"):
            train(tmp_path)
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize("at", [12, 13])
def test_a_step_that_fails_where_the_frequencies_are_counted_anew_can_be_resumed(
    tmp_path: Path, unbroken: dict[str, torch.Tensor], at: int
) -> None:
    window = {"feature_sampling_window": 12}
    train(tmp_path / "unbroken", **window)
    with pytest.MonkeyPatch.context() as patch:
        fails_at(patch, torch.Tensor, "backward", at, ERRORS["cuda"])
        with pytest.raises(MemoryFullError, match=r"goes on"):
            train(tmp_path, **window)
    assert_nothing_lost(tmp_path, result(tmp_path / "unbroken"), **window)


def test_a_row_of_the_curve_that_does_not_fit_leaves_the_last_checkpoint(
    tmp_path: Path, unbroken: dict[str, torch.Tensor]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fails_at(patch, CrosscoderTrainer, "_curve_row", 15, ERRORS["cuda"])
        with pytest.raises(MemoryFullError, match=r"row of the training curve. Lower train_batch.*last checkpoint is"):
            train(tmp_path)
    assert checkpoints(tmp_path) == [64 * 7, 64 * 13]
    assert_nothing_lost(tmp_path, unbroken)


def test_an_evaluation_that_does_not_fit_leaves_the_last_checkpoint(
    tmp_path: Path, unbroken: dict[str, torch.Tensor]
) -> None:
    logger = LoggingConfig(log_to_wandb=False, wandb_log_frequency=1, eval_every_n_wandb_logs=5)
    with pytest.MonkeyPatch.context() as patch:
        fails_at(patch, CrosscoderEvaluator, "__call__", 3, ERRORS["cuda"])
        with pytest.raises(MemoryFullError, match=r"evaluation. Lower eval_batch_size_prompts.*last checkpoint is"):
            train(tmp_path, logger=logger)
    assert checkpoints(tmp_path) == [64 * 7, 64 * 13]
    assert_nothing_lost(tmp_path, unbroken, logger=logger)


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fails_at(patch, torch.Tensor, "backward", 3, RuntimeError("mat1 and mat2"))
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            train(tmp_path)
