"""Files that strangers made: paths that leave the folder, pickles that run code, archives that lie."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sae_lens_crosscoder.errors import CheckpointError, NotFoundError
from sae_lens_crosscoder.hub.checked_files import CheckpointFolder, find_checkpoint, inside

TENSORS = {"W": torch.arange(12.0).view(3, 4), "b": torch.ones(4, dtype=torch.bfloat16)}


def tensors(folder: Path, name: str = "w.pt") -> dict[str, torch.Tensor]:
    return CheckpointFolder(folder).tensors(name)


# ------------------------------------------------------------------------------------------ paths


@pytest.mark.parametrize(
    "name", ["../other", "a/../../other", "/etc/passwd", "C:\\x", "\\\\server\\x", "a\\..\\..\\b", "", "a\0b", ".."]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str, tmp_path: Path):
    (tmp_path / "other").mkdir()
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(CheckpointError, match="leads out of"):
        inside(root, name)
    with pytest.raises(CheckpointError, match="leads out of"):
        find_checkpoint(root, name)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_out_of_the_folder_is_not_followed(what: str, tmp_path: Path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    torch.save(TENSORS, outside / "w.pt")
    if what == "file":
        (root / "w.pt").symlink_to(outside / "w.pt")
        with pytest.raises(CheckpointError, match="link out of the checkpoint"):
            tensors(root)
    else:
        (root / "sub").symlink_to(outside)
        with pytest.raises(CheckpointError, match="link out of the checkpoint"):
            find_checkpoint(root, "sub")


def test_links_inside_the_folder_and_into_the_blobs_of_the_hubs_cache_are_followed(tmp_path: Path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "abc", tmp_path / "models--a--b" / "blobs"
    (snapshot / "sub").mkdir(parents=True)
    blobs.mkdir()
    torch.save(TENSORS, blobs / "123")
    (snapshot / "sub" / "w.pt").symlink_to(Path("../../../blobs/123"))
    assert set(tensors(snapshot / "sub")) == {"W", "b"}
    (snapshot / "sub" / "again.pt").symlink_to("w.pt")
    assert set(tensors(snapshot / "sub", "again.pt")) == {"W", "b"}


def test_a_checkpoint_is_found_as_a_folder_or_by_its_weights_file(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    torch.save(TENSORS, tmp_path / "sub" / "3.pt")
    assert find_checkpoint(tmp_path).path == tmp_path
    assert find_checkpoint(tmp_path, "sub") == CheckpointFolder(tmp_path / "sub")
    for found in (
        find_checkpoint(tmp_path, "sub/3"),
        find_checkpoint(tmp_path, "sub/3.pt"),
        find_checkpoint(tmp_path / "sub" / "3.pt"),
    ):
        assert found == CheckpointFolder(tmp_path / "sub", "3")
    with pytest.raises(NotFoundError, match="no checkpoint"):
        find_checkpoint(tmp_path, "sub/4")


# ----------------------------------------------------------------------------------------- pickles


class RunsCode:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path):
    ran = tmp_path / "ran"
    torch.save({**TENSORS, "evil": RunsCode(ran)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="weights_only=True"):
        tensors(tmp_path)
    assert not ran.exists()
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert ran.exists()


def test_a_bare_pickle_is_not_even_unpickled(tmp_path: Path):
    ran = tmp_path / "ran"
    (tmp_path / "w.pt").write_bytes(pickle.dumps(RunsCode(ran)))
    with pytest.raises(CheckpointError, match=r"no archive of torch\.save"):
        tensors(tmp_path)
    torch.save(TENSORS, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"no archive of torch\.save"):
        tensors(tmp_path)
    assert not ran.exists()


def test_a_whole_module_is_refused(tmp_path: Path):
    torch.save(torch.nn.Linear(3, 4), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="is refused"):
        tensors(tmp_path)


@pytest.mark.parametrize("content", [[torch.ones(3)], torch.ones(3), {}, {"epoch": 3}, {1: torch.ones(3)}])
def test_an_archive_without_named_tensors_is_refused(content: Any, tmp_path: Path):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="no tensors by name"):
        tensors(tmp_path)


def test_a_state_dict_beside_other_things_is_found(tmp_path: Path):
    torch.save({"cc": TENSORS, "step": 3, "cfg": {"k": 4}}, tmp_path / "w.pt")
    assert set(tensors(tmp_path)) == {"W", "b"}
    torch.save({**TENSORS, "_partition_config": {"n_a": 3}}, tmp_path / "w.pt")
    assert set(tensors(tmp_path)) == {"W", "b"}
    torch.save({"cc": TENSORS, "model": TENSORS}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="no tensors by name"):
        tensors(tmp_path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(1).expand(100_000),
        lambda: torch.eye(20).to_sparse(),
        lambda: torch.empty(3, device="meta"),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    ],
    ids=["expanded", "sparse", "meta", "quantized"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_that_is_not_stored_number_by_number_is_refused(make: Callable[[], torch.Tensor], tmp_path: Path):
    torch.save({"W": make()}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"not stored as a dense tensor|is refused"):
        tensors(tmp_path)


# ---------------------------------------------------------------------------------------- archives


def test_a_flipped_bit_in_a_number_is_found_by_the_archives_checksum(tmp_path: Path):
    torch.save(TENSORS, tmp_path / "w.pt")
    content = bytearray((tmp_path / "w.pt").read_bytes())
    position = content.index(struct.pack("<4f", 4, 5, 6, 7))
    content[position] ^= 1
    (tmp_path / "w.pt").write_bytes(content)
    assert torch.load(tmp_path / "w.pt", weights_only=True)["W"][1, 0] != 4  # torch itself does not look
    with pytest.raises(CheckpointError, match="checksum of its record 'w/data/0'"):
        tensors(tmp_path)


def test_compressed_and_repeated_records_are_refused(tmp_path: Path):
    torch.save(TENSORS, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole:
        records = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match="compressed or repeated"):
        tensors(tmp_path)
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("whole/data/0", b"other")
    with pytest.raises(CheckpointError, match="compressed or repeated"):
        tensors(tmp_path)


# -------------------------------------------------------------------------------------- safetensors


def header_of(length: int, header: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", length or len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        header_of(2**40, {}),
        header_of(0, {"W": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 4),
        header_of(0, {"W": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"\0" * 8),
        header_of(0, {"W": {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
        header_of(0, {"W": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"\0" * 8),
        header_of(0, {"W": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}}, b"\0" * 8),
        header_of(0, {"W": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, b"\0" * 8),
        header_of(0, {"W": 3}),
        struct.pack("<Q", 8) + b"[[[[[[[[",
    ],
    ids=str,
)
def test_a_safetensors_file_whose_header_lies_is_refused(content: bytes, tmp_path: Path):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="no intact safetensors file"):
        tensors(tmp_path, "w.safetensors")


def test_an_intact_safetensors_file_is_read(tmp_path: Path):
    save_file(TENSORS, tmp_path / "w.safetensors")
    read = tensors(tmp_path, "w.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())


# ------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.json", "{"),
        ("c.json", "[" * 100_000),
        ("c.json", "[1]"),
        ("c.json", '"text"'),
        ("c.json", "\udcff"),
        ("c.yaml", "a: !!python/object/apply:os.getcwd []"),
        ("c.yaml", "a: [1"),
        ("c.yaml", "- 1"),
        ("c.yaml", ""),
    ],
)
def test_a_configuration_that_is_no_mapping_is_refused(name: str, content: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"cannot be read as|must hold a mapping"):
        CheckpointFolder(tmp_path).config(name)


def test_a_huge_configuration_is_not_read(tmp_path: Path):
    with (tmp_path / "c.json").open("wb") as file:
        file.truncate(2**25)
    with pytest.raises(CheckpointError, match="no configuration has"):
        CheckpointFolder(tmp_path).config("c.json")


def test_a_missing_file_is_named_with_what_is_there(tmp_path: Path):
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"lacks c\.json\. It holds other\.json"):
        CheckpointFolder(tmp_path).config("c.json")
