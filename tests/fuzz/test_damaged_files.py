"""Files that are cut off, flipped or changed by hand give a result or an error of this package."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fuzz.cases import DAMAGE, changed_json, copy_of, damaged, damaged_file, only_our_errors, read_cache, saved
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_crosscoder import load_crosscoder
from sae_lens_crosscoder.diffing.diff_report import LatentTable
from sae_lens_crosscoder.errors import CrosscoderError
from sae_lens_crosscoder.manifest import check_manifest
from sae_lens_crosscoder.training.checkpoints import check_checkpoint, is_finished, newest_whole_checkpoint
from sae_lens_crosscoder.training.parent import load_parent
from sae_lens_crosscoder.training.saved_run import SavedRun

OF_A_CROSSCODER = ["cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "runner_cfg.json", "metrics.json"]


def read_all(folder: Path) -> None:
    run = SavedRun(folder)
    for read in (lambda: run.sae, lambda: run.sources, lambda: run.dead, run.metrics, run.config):
        only_our_errors(read)
    only_our_errors(load_parent, str(folder))
    only_our_errors(load_crosscoder, folder)
    (folder / "manifest.json").unlink()
    only_our_errors(load_crosscoder, folder)


@given(st.data())
def test_damaged_crosscoders(data: st.DataObject) -> None:
    copy = copy_of(saved() / "output")
    damaged_file(data, copy, OF_A_CROSSCODER)
    read_all(copy)


@given(st.data())
def test_damaged_configurations_of_crosscoders(data: st.DataObject) -> None:
    copy = copy_of(saved() / "output")
    changed_json(data, copy / data.draw(st.sampled_from(["cfg.json", "runner_cfg.json"])))
    read_all(copy)


@given(st.data())
def test_damaged_checkpoints(data: st.DataObject) -> None:
    copy = copy_of(saved() / "checkpoint")
    names = sorted(path.name for path in copy.iterdir() if path.name != "manifest.json")
    if damaged_file(data, copy, names):
        with pytest.raises(CrosscoderError):
            check_checkpoint(copy)
    only_our_errors(load_parent, str(copy))


def read_manifests(folder: Path) -> None:
    root = folder.with_name("root")
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(folder, root / "run" / "12")
    only_our_errors(check_manifest, folder)
    only_our_errors(check_checkpoint, folder)
    only_our_errors(newest_whole_checkpoint, root, "some run")
    only_our_errors(is_finished, folder, "some run")


@given(st.data())
def test_damaged_manifests(data: st.DataObject) -> None:
    copy = copy_of(saved() / "checkpoint")
    damaged_file(data, copy, ["manifest.json"])
    read_manifests(copy)


@given(st.data())
def test_changed_manifests(data: st.DataObject) -> None:
    copy = copy_of(saved() / "checkpoint")
    changed_json(data, copy / "manifest.json")
    read_manifests(copy)


@given(st.data())
def test_damaged_caches(data: st.DataObject) -> None:
    copy = copy_of(saved() / "cache")
    damaged_file(data, copy, sorted(path.name for path in copy.iterdir()))
    only_our_errors(read_cache, copy)


@given(st.data())
def test_changed_headers_of_caches(data: st.DataObject) -> None:
    copy = copy_of(saved() / "cache")
    changed_json(data, copy / data.draw(st.sampled_from(["cache.json", "manifest-00000.json"])))
    only_our_errors(read_cache, copy)


@given(DAMAGE)
def test_damaged_tables_of_latents(damage: tuple[str, float, bytes]) -> None:
    copy = copy_of(saved() / "table")
    file = copy / "latents.parquet"
    file.write_bytes(damaged(file.read_bytes(), *damage))
    only_our_errors(LatentTable.load, copy)
