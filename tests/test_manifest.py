from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from sae_lens_crosscoder.errors import DamagedError
from sae_lens_crosscoder.manifest import check_manifest, checksum, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.txt").write_bytes(b"abc")
    (tmp_path / "inner" / "b.bin").write_bytes(bytes(range(256)) * 5000)
    write_manifest(tmp_path, run="this one")
    return tmp_path


def test_a_folder_as_it_was_written_is_whole_and_says_what_it_was_given(folder: Path) -> None:
    assert check_manifest(folder)["run"] == "this one"
    assert set(read_manifest(folder)["files"]) == {"a.txt", "inner/b.bin"}
    (folder / "added.txt").write_text("later")
    check_manifest(folder)


def test_the_checksum_is_that_of_sha256(folder: Path) -> None:
    # The first example of FIPS 180-2.
    assert checksum(folder / "a.txt") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    content = (folder / "inner" / "b.bin").read_bytes()
    assert checksum(folder / "inner" / "b.bin") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a.txt is missing"),
        (b"abcd", "a.txt has 4 bytes instead of 3"),
        (b"abd", "a.txt has other contents than were written"),
    ],
)
def test_files_that_are_not_what_was_written_are_all_named(folder: Path, content: bytes | None, message: str) -> None:
    (folder / "a.txt").unlink() if content is None else (folder / "a.txt").write_bytes(content)
    (folder / "inner" / "b.bin").write_bytes(b"")
    with pytest.raises(DamagedError, match=message) as error:
        check_manifest(folder)
    assert "inner/b.bin has 0 bytes instead of 1280000" in str(error.value)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "it was not written to its end"),
        ("{", "cannot be read"),
        ("[]", "it is no manifest"),
        (json.dumps({"files": {}, "manifest_version": 2}), "is of version 2"),
        (json.dumps({"files": {"../x": {}}, "manifest_version": 1}), "'../x' in its manifest is no file of the folder"),
        (json.dumps({"files": {"/etc/x": {}}, "manifest_version": 1}), "is no file of the folder"),
        (json.dumps({"files": {"a.txt": 3}, "manifest_version": 1}), "is no file of the folder"),
    ],
)
def test_a_manifest_that_is_none_is_an_error(folder: Path, manifest: Any, message: str) -> None:
    path = folder / "manifest.json"
    path.unlink() if manifest is None else path.write_text(manifest)
    with pytest.raises(DamagedError, match=message):
        check_manifest(folder)
