from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import batchtopk_config, run_config, tiny_pair, token_dataset
from safetensors.torch import load_file

from sae_lens_crosscoder import CrosscoderTrainingRunner
from sae_lens_crosscoder.errors import NonFiniteError, SaveError


def poisoned_pair(value: float, after: int) -> tuple[Any, Any]:
    """A pair whose second model gives a number that is none, in one token, after some forward passes."""
    pair = tiny_pair()
    passes = iter(range(10**6))
    harvest = pair.source_activations

    def poisoned(tokens: torch.Tensor) -> list[torch.Tensor]:
        parts = harvest(tokens)
        if next(passes) == after:
            parts[1] = parts[1].clone()
            parts[1][2, 5, 3] = value
        return parts

    return pair, poisoned


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("in_background", [False, True])
def test_a_model_that_gives_no_numbers_stops_the_run_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, in_background: bool
) -> None:
    pair, poisoned = poisoned_pair(value, after=9)
    monkeypatch.setattr(pair, "source_activations", poisoned)
    cfg = run_config(batchtopk_config(), tmp_path, prefetch_llm_batches=int(in_background))
    with pytest.raises(
        NonFiniteError, match=r"after step \d+.*of source 'chat' \(tiny-chat, blocks.1.*in 1 of 60"
    ) as stop:
        CrosscoderTrainingRunner(cfg, token_dataset(), pair).run()
    batch = load_file(tmp_path / "output" / "non_finite_batch.safetensors")
    rows = batch["activations"].unflatten(0, (4, 16)) if batch["activations"].ndim == 2 else batch["activations"]
    assert not rows[2, 5].isfinite().all()
    assert rows.isfinite().sum() == rows.numel() - 1
    assert batch["tokens"].shape == (4, 16)
    checkpoint = next(tmp_path.glob("checkpoints/*/*"))
    assert str(checkpoint) in str(stop.value)
    again = run_config(batchtopk_config(), tmp_path, resume_from_checkpoint=str(checkpoint))
    CrosscoderTrainingRunner(again, token_dataset(), tiny_pair()).run()
    assert all(t.isfinite().all() for t in load_file(tmp_path / "output" / "sae_weights.safetensors").values())


def test_a_disk_without_room_for_the_batch_still_has_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, poisoned = poisoned_pair(float("nan"), after=9)
    monkeypatch.setattr(pair, "source_activations", poisoned)

    def full(path: Path, _content: bytes) -> Path:
        assert list(tmp_path.glob("checkpoints/*/*")), "the checkpoint comes first"
        raise SaveError(f"{path} could not be written: No space left on device.")

    monkeypatch.setattr("sae_lens_crosscoder.training.failing.write_file", full)
    cfg = run_config(batchtopk_config(), tmp_path)
    with pytest.raises(
        NonFiniteError,
        match=r"infinite or not a number.*What was trained is in .*tokens and their activations could not be saved: "
        r".*non_finite_batch.safetensors could not be written: No space left",
    ) as stop:
        CrosscoderTrainingRunner(cfg, token_dataset(), pair).run()
    (checkpoint,) = tmp_path.glob("checkpoints/*/*")
    assert str(checkpoint) in str(stop.value)
    assert set(stop.value.batch) == {"tokens", "activations"}


def test_what_is_dropped_may_be_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = tiny_pair()
    harvest = pair.source_activations

    def poisoned(tokens: torch.Tensor) -> list[torch.Tensor]:
        parts = [part.clone() for part in harvest(tokens)]
        parts[0][:, 0] = torch.nan  # BOS, which is excluded
        return parts

    monkeypatch.setattr(pair, "source_activations", poisoned)
    cfg = run_config(batchtopk_config(), tmp_path, n_eval_batches=0)
    CrosscoderTrainingRunner(cfg, token_dataset(), pair).run()
    assert (tmp_path / "output" / "cfg.json").is_file()
