"""Disks that are full or refuse, at every write of a checkpoint in turn."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.damage import assert_nothing_lost, checkpoints, train

from sae_lens_crosscoder import CrosscoderTrainer
from sae_lens_crosscoder.activations import store as store_module
from sae_lens_crosscoder.errors import DamagedError, SaveError
from sae_lens_crosscoder.training import trainer as trainer_module

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The data set ended")]

WRITES = 27
"""Writes, syncs and moves of a checkpoint of the run."""


@contextmanager
def failing_write(monkeypatch: pytest.MonkeyPatch, number: int, error: OSError) -> Iterator[list[str]]:
    """Let the second checkpoint's write with a number fail; all that reaches the disk by way of Python counts."""
    n_saved, seen = [0], list[str]()

    def counted(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            if n_saved[0] == 2:
                seen.append(name)
                if len(seen) == number:
                    raise error
            return operation(*arguments, **named)

        return run

    save = CrosscoderTrainer.save_checkpoint

    def saving(self: CrosscoderTrainer, *arguments: Any, **named: Any) -> None:
        n_saved[0] += 1
        try:
            save(self, *arguments, **named)
        finally:
            n_saved[0] = n_saved[0] if n_saved[0] < 2 else 3

    with monkeypatch.context() as patch:
        patch.setattr(CrosscoderTrainer, "save_checkpoint", saving)
        patch.setattr(os, "fsync", counted("fsync", os.fsync))
        patch.setattr(torch, "save", counted("torch.save", torch.save))
        for module in (trainer_module, store_module):
            patch.setattr(module, "save_file", counted("save_file", module.save_file))
        for name in ("write_bytes", "rename", "replace", "mkdir"):
            patch.setattr(Path, name, counted(name, getattr(Path, name)))
        yield seen


@pytest.mark.parametrize("number", range(1, WRITES + 1))
def test_a_disk_that_is_full_at_any_write_of_a_checkpoint_costs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: dict[str, torch.Tensor], number: int
) -> None:
    with failing_write(monkeypatch, number, OSError(errno.ENOSPC, "No space left on device")) as seen:
        with pytest.raises(SaveError, match=r"No space left on device.*(unchanged|free some space|make room)"):
            train(tmp_path)
        assert len(seen) >= number
    assert len(checkpoints(tmp_path)) in (1, 2)
    assert_nothing_lost(tmp_path, unbroken)


def test_a_checkpoint_has_as_many_writes_as_are_broken_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with failing_write(monkeypatch, 0, OSError()) as seen:
        train(tmp_path)
    assert len(seen) == WRITES, seen


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("number", [2, 12])
def test_a_disk_that_refuses_costs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: dict[str, torch.Tensor], code: int, number: int
) -> None:
    with (
        failing_write(monkeypatch, number, OSError(code, os.strerror(code))),
        pytest.raises(SaveError, match=os.strerror(code)),
    ):
        train(tmp_path)
    assert_nothing_lost(tmp_path, unbroken)


@pytest.mark.parametrize("kilobytes", [60, 100, 150])
def test_a_disk_that_is_really_full_costs_no_checkpoint(
    tmp_path: Path, unbroken: dict[str, torch.Tensor], kilobytes: int
) -> None:
    disk = tmp_path / "checkpoints"
    disk.mkdir()
    options = f"size={kilobytes}k"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        with pytest.MonkeyPatch.context() as patch:  # the run would be refused at once, as its needs are known
            patch.setattr("sae_lens_crosscoder.training.runner.check_needs", lambda *_: None)
            with pytest.raises(SaveError, match="No space left"):
                train(tmp_path)
            subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True, capture_output=True)
            assert_nothing_lost(tmp_path, unbroken)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


FILES = (
    *("activations_store_state.safetensors", "activation_scaler.json", "cfg.json", "manifest.json", "runner_cfg.json"),
    *("sae_weights.safetensors", "sparsity.safetensors", "trainer_state.pt"),
)


@pytest.mark.parametrize("share", [0.0, 0.99])
@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_that_was_cut_off_is_passed_over_and_named(
    tmp_path: Path,
    unbroken: dict[str, torch.Tensor],
    caplog: pytest.LogCaptureFixture,
    name: str,
    share: float,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        step = CrosscoderTrainer.step

        def stopping(self: CrosscoderTrainer, batch: torch.Tensor) -> Any:
            if self.n_training_steps == N_STOPPED:
                raise KeyboardInterrupt
            return step(self, batch)

        patch.setattr(CrosscoderTrainer, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    newest = max(tmp_path.glob("checkpoints/*/*"), key=lambda path: int(path.name))
    assert {path.name for path in newest.iterdir()} == set(FILES)
    content = (newest / name).read_bytes()
    (newest / name).write_bytes(content[: int(share * len(content))])
    assert_nothing_lost(tmp_path, unbroken)
    assert f"Passed over: {newest}" in caplog.text


N_STOPPED = 20


def test_a_checkpoint_that_was_cut_off_is_refused_when_it_is_named(tmp_path: Path) -> None:
    train(tmp_path)
    (newest, *_) = sorted(tmp_path.glob("checkpoints/*/*"))
    state = newest / "trainer_state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(DamagedError, match=r"trainer_state.pt has \d+ bytes instead of .*takes the newest whole"):
        train(tmp_path, overwrite_output=True, resume_from_checkpoint=str(newest))
