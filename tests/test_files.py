from __future__ import annotations

import errno
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import crosscoder
from sae_lens import SAE
from safetensors.torch import save_file

from sae_lens_crosscoder.errors import NotFoundError, SaveError
from sae_lens_crosscoder.files import existing_folder, remove_leftovers, write_json, written_aside


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_aside_stands_in_place_when_the_block_ends(tmp_path: Path):
    with written_aside(tmp_path / "deep" / "out") as folder:
        (folder / "a.txt").write_text("1")
        (folder / "inner").mkdir()
        (folder / "inner" / "b.txt").write_text("2")
        assert not (tmp_path / "deep" / "out").exists()
    assert (tmp_path / "deep" / "out" / "inner" / "b.txt").read_text() == "2"
    assert names(tmp_path / "deep") == ["out"]
    assert (tmp_path / "deep" / "out").stat().st_mode & 0o777 == 0o755


def test_files_are_replaced_and_others_stay(tmp_path: Path):
    out = tmp_path / "out"
    (out / "inner").mkdir(parents=True)
    (out / "a.txt").write_text("old")
    (out / "curve.csv").write_text("kept")
    with written_aside(out) as folder:
        (folder / "a.txt").write_text("new")
        (folder / "inner").mkdir()
        (folder / "inner" / "b.txt").write_text("2")
    assert (out / "a.txt").read_text() == "new"
    assert (out / "curve.csv").read_text() == "kept"
    assert (out / "inner" / "b.txt").read_text() == "2"
    assert names(tmp_path) == ["out"]


def test_links_that_stay_are_still_links(tmp_path: Path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (elsewhere / "step_1").write_text("kept")
    (out / "checkpoints").symlink_to(elsewhere)
    (out / "newest").symlink_to("checkpoints/step_1")
    with written_aside(out) as folder:
        (folder / "a.txt").write_text("new")
    assert (out / "checkpoints").readlink() == elsewhere
    assert (out / "newest").read_text() == "kept"
    assert names(elsewhere) == ["step_1"]
    assert (out / "a.txt").read_text() == "new"


def test_an_error_inside_the_block_leaves_everything_as_it_was(tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.txt").write_text("old")
    with pytest.raises(KeyError), written_aside(out) as folder:  # noqa: PT012
        (folder / "a.txt").write_text("new")
        raise KeyError
    assert (out / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("IoError: No space left on device (os error 28)")],
)
def test_a_full_disk_is_a_save_error_that_names_the_folder(tmp_path: Path, error: Exception):
    message = r"Saving to .*out failed: .*No space left.*before is unchanged"
    with pytest.raises(SaveError, match=message), written_aside(tmp_path / "out") as folder:  # noqa: PT012
        (folder / "a.txt").write_text("new")
        raise error
    assert names(tmp_path) == []


def test_a_place_that_cannot_be_written_to_is_a_save_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(SaveError, match=r"Saving to .*out failed: .* choose another folder"),
        written_aside(tmp_path / "file" / "out"),
    ):
        pass


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB; the test is skipped where it cannot be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def saved_crosscoder(folder: Path, d_sae: int) -> None:
    sae = crosscoder(widths=(4, 4), d_sae=d_sae, normalize_activations="none")
    with written_aside(folder) as aside:
        sae.save_inference_model(aside)


def assert_an_earlier_crosscoder_survives_a_full_disk(disk: Path) -> None:
    saved_crosscoder(disk / "crosscoder", 16)
    before = {path.name: path.read_bytes() for path in (disk / "crosscoder").iterdir()}
    with pytest.raises(SaveError, match="No space left"):
        saved_crosscoder(disk / "crosscoder", 4096)
    assert {path.name: path.read_bytes() for path in (disk / "crosscoder").iterdir()} == before
    assert names(disk) == ["crosscoder"]
    assert SAE.load_from_disk(disk / "crosscoder").cfg.d_sae == 16


def test_an_earlier_crosscoder_survives_a_disk_that_is_really_full(small_disk: Path):
    assert_an_earlier_crosscoder_survives_a_full_disk(small_disk)


def test_an_earlier_crosscoder_survives_a_disk_that_is_full_for_safetensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def save_until_full(tensors: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if max(tensor.numel() for tensor in tensors.values()) > 8 * 1000:
            Path(path).write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path, *args, **kwargs)

    monkeypatch.setattr("sae_lens.saes.sae.save_file", save_until_full)
    assert_an_earlier_crosscoder_survives_a_full_disk(tmp_path)


def test_json_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "deep" / "metrics.json"
    write_json(target, {"l0": 3.5})
    assert json.loads(target.read_text()) == {"l0": 3.5}

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SaveError, match=r"metrics.json could not be written: No space left.*before is unchanged"):
        write_json(target, {"l0": 4.5})
    assert json.loads(target.read_text()) == {"l0": 3.5}
    assert names(target.parent) == ["metrics.json"]


def test_what_cannot_be_written_as_json_leaves_nothing_behind(tmp_path: Path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "metrics.json", {"l0": torch.zeros(1)})
    assert names(tmp_path) == []


def test_a_folder_that_is_there_is_returned(tmp_path: Path):
    assert existing_folder(str(tmp_path), "checkpoint") == tmp_path


def test_a_missing_folder_is_named_with_those_beside_it(tmp_path: Path):
    for name in ("1024", "2048"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(NotFoundError, match=r"There is no checkpoint at .*512. Beside it there are: 1024, 2048.$"):
        existing_folder(tmp_path / "512", "checkpoint")
    with pytest.raises(NotFoundError, match=r"There is no checkpoint at .*deep\.$"):
        existing_folder(tmp_path / "1024" / "x" / "deep", "checkpoint")


def test_what_a_killed_process_left_is_removed_and_the_old_folder_put_back(tmp_path: Path):
    out = tmp_path / "out"
    (tmp_path / ".out-abcd1234.tmp").mkdir()
    (tmp_path / ".out-abcd1234.tmp.old").mkdir()
    (tmp_path / ".out-abcd1234.tmp.old" / "weights").write_text("the old ones")
    others = [tmp_path / ".out-2-abcd1234.tmp", tmp_path / ".out-abcd1234.txt", tmp_path / "out-abcd1234.tmp"]
    for other in others:
        other.mkdir()
    remove_leftovers(out)
    assert (out / "weights").read_text() == "the old ones"
    assert sorted(tmp_path.iterdir()) == sorted([out, *others])
    (out / ".640-abcd1234.tmp").mkdir()
    (out / f".{'0f' * 16}.tmp").touch()
    (out / ".mine.tmp").touch()
    (tmp_path / ".out-abcd1234.tmp.old").mkdir()  # the new one had taken its place
    remove_leftovers(out)
    assert sorted(p.name for p in out.iterdir()) == [".mine.tmp", "weights"]
    assert sorted(tmp_path.iterdir()) == sorted([out, *others])
