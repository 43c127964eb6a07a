"""Values, files and damage that the tests of bad input draw, and what may come of them."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from helpers import batchtopk_config, cache_of, paired_store, run_config, tiny_pair, token_dataset
from hypothesis import strategies as st

from sae_lens_crosscoder import CrosscoderTrainingRunner
from sae_lens_crosscoder.activations import CacheReader
from sae_lens_crosscoder.diffing import PairGeometry
from sae_lens_crosscoder.diffing.diff_report import LatentTable
from sae_lens_crosscoder.diffing.diff_report.decoder_columns import norm_columns, pair_columns
from sae_lens_crosscoder.errors import CrosscoderError
from sae_lens_crosscoder.training.saved_run import SavedRun


def only_our_errors(function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    message = "nothing was wrong"
    try:
        function(*arguments, **named)
    except CrosscoderError as error:
        message = str(error)
    assert message
    assert len(message.splitlines()) == 1


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
GOOD_RUN = json.loads(json.dumps(run_config(batchtopk_config()).to_dict()))
GOOD_SOURCES = GOOD_RUN["sources"]


def changed(values: Any) -> st.SearchStrategy[Any]:
    """The mapping with one entry, at any depth, that is another value, is gone or is new."""

    def change(path: list[str], how: str, value: Any) -> Any:
        copy = json.loads(json.dumps(values))
        place = copy
        for name in path[:-1]:
            place = place[name]
        if how == "removed":
            place.pop(path[-1])
        else:
            place[path[-1] + ("_" if how == "added" else "")] = value
        return copy

    paths = [[name] for name in values]
    paths += [[name, inner] for name, value in values.items() if isinstance(value, dict) for inner in value]
    return st.builds(change, st.sampled_from(paths), st.sampled_from(["replaced", "removed", "added"]), VALUES)


@lru_cache
def scratch() -> Path:
    """A folder that is removed at the end; a test may be driven by a fuzzer, which has no fixtures."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@lru_cache
def saved() -> Path:
    """A finished crosscoder, a checkpoint of its run, a cache of activations and a table of latents."""
    folder = scratch() / "saved"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cfg = run_config(batchtopk_config(), folder, n_checkpoints=1)
        CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair()).run()
        next(folder.glob("checkpoints/*/*")).rename(folder / "checkpoint")
        cache_of(folder / "cache", paired_store())
    run = SavedRun(folder / "output")
    columns = [
        *pair_columns(PairGeometry.from_sources(run.sae.W_dec, run.sources)),
        *norm_columns(run.sae.W_dec, run.sources),
    ]
    (folder / "table").mkdir()
    (folder / "table" / "latents.parquet").write_bytes(LatentTable(columns, run.sources.labels).to_parquet())
    return folder


DAMAGE = st.tuples(
    st.sampled_from(["cut", "flip", "insert", "replace"]), st.floats(0, 1, exclude_max=True), st.binary(max_size=16)
)


def damaged(content: bytes, how: str, where: float, extra: bytes) -> bytes:
    at = int(where * len(content))
    if how == "cut":
        return content[:at]
    if how == "insert":
        return content[:at] + extra + content[at:]
    if how == "replace":
        return extra
    return content[:at] + bytes([content[at] ^ (1 << (at % 8))]) + content[at + 1 :]


def copy_of(folder: Path) -> Path:
    copy = folder.with_name(f"{folder.name}_copy")
    shutil.rmtree(copy, ignore_errors=True)
    return shutil.copytree(folder, copy)


def damaged_file(data: st.DataObject, folder: Path, names: list[str]) -> bool:
    """Damage one of the files; whether its content is another one now."""
    path = folder / data.draw(st.sampled_from(names))
    before = path.read_bytes()
    path.write_bytes(damaged(before, *data.draw(DAMAGE)))
    return path.read_bytes() != before


def changed_json(data: st.DataObject, path: Path) -> None:
    """Another value in a JSON file, which stays JSON."""
    path.write_text(json.dumps(data.draw(changed(json.loads(path.read_text())))))


def read_cache(folder: Path) -> None:
    """All of a cache, in the order of the text and once more in another."""
    reader = CacheReader(folder, 4, patience_seconds=-1)
    for epoch in range(2):
        reader.begin_epoch(epoch)
        while reader.next_block() is not None:
            pass
