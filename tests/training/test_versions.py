from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import batchtopk_config, run_config, tiny_pair, token_dataset

from sae_lens_crosscoder import CrosscoderRunnerConfig, CrosscoderTrainingRunner
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.manifest import check_manifest, read_manifest, write_manifest
from sae_lens_crosscoder.training import versions
from sae_lens_crosscoder.training.checkpoints import check_checkpoint, is_finished, newest_whole_checkpoint
from sae_lens_crosscoder.training.versions import CHECKPOINT, CONFIG, Format, migrate_checkpoint, migrated_config


def renamed(values: dict[str, Any]) -> None:
    if "learning_rate" in values:
        values["lr"] = values.pop("learning_rate")


def doubled(values: dict[str, Any]) -> None:
    values["lr"] = 2 * values["lr"]


@pytest.mark.parametrize(
    ("values", "lr"),
    [
        ({"learning_rate": 1.0}, 2.0),
        ({"config_version": 1, "learning_rate": 1.0}, 2.0),
        ({"config_version": 2, "lr": 1.0}, 2.0),
        ({"config_version": 3, "lr": 1.0}, 1.0),
        ({"lr": 1.0}, 2.0),
    ],
)
def test_a_configuration_takes_the_steps_from_its_version_on(
    values: dict[str, Any], lr: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "CONFIG", Format("run configuration", "config_version", (renamed, doubled)))
    given = dict(values)
    assert migrated_config(values) == {"lr": lr}
    assert values == given


def test_what_a_run_writes_has_the_versions_of_today(tmp_path: Path) -> None:
    checkpoint = written(tmp_path)
    assert read_manifest(checkpoint)["checkpoint_version"] == CHECKPOINT.version == 1
    for folder in (checkpoint, tmp_path / "output"):
        assert json.loads((folder / "runner_cfg.json").read_text())["config_version"] == CONFIG.version == 1


@pytest.mark.parametrize("version", [0, -1, "1", 1.0, True, None, []])
def test_a_version_that_is_none_is_refused(version: Any) -> None:
    with pytest.raises(ConfigError, match=r"config_version=.* is no version of a run configuration"):
        migrated_config({"config_version": version})


def test_a_configuration_of_a_later_version_is_refused() -> None:
    values = {**run_config(batchtopk_config()).to_dict(), "config_version": CONFIG.version + 1}
    with pytest.raises(ConfigError, match=r"config_version=2, this package reads up to 1.*Upgrade the package: pip"):
        CrosscoderRunnerConfig.from_dict(values)


def written(folder: Path) -> Path:
    """A run's checkpoint, beside its output."""
    cfg = run_config(batchtopk_config(), folder, n_checkpoints=1)
    CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair()).run()
    (checkpoint,) = folder.glob("checkpoints/*/*")
    return checkpoint


def rewritten(checkpoint: Path, **facts: Any) -> None:
    """The manifest anew, with other facts."""
    before = read_manifest(checkpoint)
    write_manifest(checkpoint, **{**{name: before[name] for name in ("run", "checkpoint_version")}, **facts})


def test_a_checkpoint_of_a_later_version_is_refused_and_never_passed_over(tmp_path: Path) -> None:
    checkpoint = written(tmp_path)
    rewritten(checkpoint, checkpoint_version=2)
    with pytest.raises(ConfigError, match=r"The checkpoint has checkpoint_version=2.*Upgrade the package"):
        check_checkpoint(checkpoint)
    run = run_config(batchtopk_config()).fingerprint
    with pytest.raises(ConfigError, match="Upgrade the package"):
        newest_whole_checkpoint(tmp_path / "checkpoints", run)


def test_a_checkpoint_of_an_earlier_version_is_brought_to_todays_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_a_note(folder: Path) -> None:
        (folder / "note.txt").write_text("migrated")
        (folder / "cfg.json").write_text((folder / "cfg.json").read_text() + " ")

    checkpoint = written(tmp_path)
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    monkeypatch.setattr(versions, "CHECKPOINT", Format("checkpoint", "checkpoint_version", (with_a_note,)))
    migrate_checkpoint(checkpoint)
    manifest = check_manifest(checkpoint)
    assert manifest["checkpoint_version"] == 2
    assert manifest["run"] == json.loads(before["manifest.json"])["run"]
    after = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    assert after.pop("note.txt") == b"migrated"
    assert {name for name in after if after[name] != before[name]} == {"cfg.json", "manifest.json"}
    migrate_checkpoint(checkpoint)
    assert (checkpoint / "cfg.json").read_bytes() == after["cfg.json"]


def test_a_step_that_fails_leaves_the_checkpoint_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(folder: Path) -> None:
        (folder / "cfg.json").unlink()
        raise ConfigError("no")

    checkpoint = written(tmp_path)
    monkeypatch.setattr(versions, "CHECKPOINT", Format("checkpoint", "checkpoint_version", (failing,)))
    with pytest.raises(ConfigError, match="no"):
        migrate_checkpoint(checkpoint)
    assert check_manifest(checkpoint)["checkpoint_version"] == 1


def without(folder: Path, field: str) -> None:
    """A folder as a version without this field, and with another fingerprint for it, would have written it."""
    path = folder / "runner_cfg.json"
    values = json.loads(path.read_text())
    assert values.pop(field) is not None
    path.write_text(json.dumps(values))
    write_manifest(folder, run="another")


def test_a_run_knows_what_a_version_without_a_field_that_has_come_since_wrote(tmp_path: Path) -> None:
    checkpoint = written(tmp_path)
    without(checkpoint, "n_data_shards")
    without(tmp_path / "output", "n_data_shards")
    same, other = (run_config(batchtopk_config(), n_data_shards=n).fingerprint for n in (1, 2))
    assert newest_whole_checkpoint(tmp_path / "checkpoints", same) == checkpoint
    assert newest_whole_checkpoint(tmp_path / "checkpoints", other) is None
    assert is_finished(tmp_path / "output", same)
    assert not is_finished(tmp_path / "output", other)
    cfg = run_config(batchtopk_config(), tmp_path, resume_from_checkpoint="auto", overwrite_output=True)
    runner = CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair())
    assert runner.cfg.resume_from_checkpoint == str(checkpoint)
    assert torch.isfinite(runner.run().W_dec).all()


def test_a_run_of_a_later_version_is_named_when_it_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = written(tmp_path)
    path = checkpoint / "runner_cfg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "config_version": 99}))
    rewritten(checkpoint, run="of a later version")
    assert newest_whole_checkpoint(tmp_path / "checkpoints", run_config(batchtopk_config()).fingerprint) is None
    assert f"Passed over: {checkpoint}, whose configuration cannot be read: " in caplog.text
    assert "Upgrade the package" in caplog.text
