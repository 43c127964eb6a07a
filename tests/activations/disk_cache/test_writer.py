from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    CONTEXT,
    cache_of,
    fresh_tokenizer,
    paired_store,
    store_config,
    text_dataset,
    tiny_pair,
    token_dataset,
)

from sae_lens_crosscoder import DatasetConfig, PairedActivationsStore
from sae_lens_crosscoder.activations import CacheReader, CacheRequest, describe_cache
from sae_lens_crosscoder.activations.disk_cache.shards import CacheBlock
from sae_lens_crosscoder.errors import ConfigError, DataError, SaveError


def blocks(reader: CacheReader) -> Iterator[CacheBlock]:
    while (block := reader.next_block()) is not None:
        yield block


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if "manifest" not in path.name}


def test_a_cache_holds_the_tokens_of_the_text_in_order_and_what_the_models_give_for_them(tmp_path: Path):
    model = tiny_pair()
    found = list(blocks(cache_of(tmp_path, paired_store(model))))
    tokens = torch.tensor(token_dataset(40)["input_ids"][:])
    assert torch.equal(torch.cat([block.tokens for block in found]), tokens)
    torch.testing.assert_close(torch.cat([block.activations for block in found]), model(tokens).flatten(0, 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cache.json",
        "manifest-00000.json",
        *(f"shard-{i:06d}.safetensors" for i in range(5)),
    ]


def test_held_out_sequences_are_not_cached(tmp_path: Path):
    found = list(blocks(cache_of(tmp_path, paired_store(n_eval_sequences=6), n_sequences=12)))
    expected = torch.tensor(token_dataset(18)["input_ids"][6:])
    assert torch.equal(torch.cat([block.tokens for block in found]), expected)


def test_sequences_know_the_data_set_they_are_from(tmp_path: Path):
    store = PairedActivationsStore(
        tiny_pair(tokenizer=fresh_tokenizer()),
        [text_dataset(200), token_dataset(60)],
        [DatasetConfig(label="words", weight=0.75), DatasetConfig(label="ids", weight=0.25)],
        store_config(),
    )
    ids = {tuple(row) for row in token_dataset(60)["input_ids"][:]}
    for block in blocks(cache_of(tmp_path, store)):
        assert block.datasets.tolist() == [int(tuple(row) in ids) for row in block.tokens.tolist()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_are_rounded_to_the_asked_dtype(tmp_path: Path, dtype: torch.dtype):
    model = tiny_pair()
    (block, *_) = blocks(cache_of(tmp_path, paired_store(model), dtype=str(dtype).removeprefix("torch.")))
    expected = model(torch.tensor(token_dataset(4)["input_ids"][:])).flatten(0, 1).to(dtype)
    assert block.activations.dtype == dtype
    torch.testing.assert_close(block.activations.float(), expected.float(), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("n_writers", [2, 3])
def test_a_cache_of_several_writers_is_that_of_one(tmp_path: Path, n_writers: int):
    cache_of(tmp_path / "one", paired_store())
    for rank in reversed(range(n_writers)):
        cache_of(tmp_path / "several", paired_store(), rank=rank, world_size=n_writers)
        if rank > 0:
            with pytest.raises(DataError, match="did not come"):
                list(blocks(CacheReader(tmp_path / "several", 4, patience_seconds=0)))
    assert files_of(tmp_path / "several") == files_of(tmp_path / "one")
    shards = [json.loads(path.read_text())["shards"] for path in sorted((tmp_path / "several").glob("manifest-*"))]
    assert [[shard["number"] for shard in own] for own in shards] == [
        list(range(rank, 5, n_writers)) for rank in range(n_writers)
    ]


def test_data_that_end_early_end_the_cache(tmp_path: Path):
    reader = cache_of(tmp_path, paired_store(data=token_dataset(21)), n_sequences=40)
    assert sum(len(block.tokens) for block in blocks(reader)) == 21
    assert json.loads((tmp_path / "manifest-00000.json").read_text())["ended_at_sequence"] == 21


def test_a_cache_has_as_many_sequences_as_hold_the_tokens_asked_for(tmp_path: Path):
    reader = cache_of(tmp_path, paired_store(), n_tokens=10 * CONTEXT + 1)
    assert [len(block.tokens) for block in blocks(reader)] == [4, 4, 3]


def test_a_writer_that_is_called_again_runs_the_models_only_for_what_is_missing(tmp_path: Path):
    cache_of(tmp_path / "whole", paired_store())
    cache_of(tmp_path / "broken", paired_store())
    (tmp_path / "broken" / "shard-000003.safetensors").unlink()
    store = paired_store()
    harvested: list[torch.Tensor] = []
    harvest = store.harvest

    def noting(tokens: torch.Tensor) -> list[torch.Tensor]:
        harvested.append(tokens)
        return harvest(tokens)

    store.harvest = noting  # type: ignore[method-assign]
    cache_of(tmp_path / "broken", store)
    assert torch.equal(torch.cat(harvested), torch.tensor(token_dataset(40)["input_ids"][24:32]))
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")


WRITER = """
import sys, time; sys.path[:0] = sys.argv[2:]
from pathlib import Path
from helpers import cache_of, paired_store
store = paired_store()
harvest = store.harvest
store.harvest = lambda tokens: (time.sleep(0.3), harvest(tokens))[1]
cache_of(Path(sys.argv[1]), store)
"""


def wait_for(path: Path) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_cache_is_read_while_another_process_writes_it_which_is_killed_and_goes_on(tmp_path: Path):
    folder, tests = tmp_path / "cache", str(Path(__file__).parents[2])
    writer = subprocess.Popen([sys.executable, "-W", "ignore", "-c", WRITER, str(folder), tests])
    try:
        wait_for(folder / "cache.json")
        reader = CacheReader(folder, 4, patience_seconds=60)
        found = list(islice(blocks(reader), 3))
        assert writer.poll() is None, "it was written before it was read"
        assert len(list(folder.glob("shard-*"))) < 5
    finally:
        writer.kill()  # SIGKILL
        writer.wait()
    with pytest.raises(DataError, match=r"Shard [234] .* did not come: [234] of 5 are finished"):
        list(blocks(CacheReader(folder, 4, patience_seconds=0)))
    again = threading.Thread(target=cache_of, args=(folder, paired_store()))
    again.start()
    found += blocks(reader)
    again.join()
    assert torch.equal(torch.cat([block.tokens for block in found]), torch.tensor(token_dataset(40)["input_ids"][:]))
    cache_of(tmp_path / "unbroken", paired_store())
    assert files_of(folder) == files_of(tmp_path / "unbroken")


@pytest.mark.parametrize(("n_writers", "age_seconds", "stays"), [(1, 0, False), (2, 0, True), (2, 7200, False)])
def test_what_a_killed_writer_left_is_removed_and_what_another_is_writing_is_not(
    tmp_path: Path, n_writers: int, age_seconds: int, stays: bool
):
    left = tmp_path / f".{uuid.uuid4().hex}.tmp"
    left.write_bytes(b"half a shard")
    changed = time.time() - age_seconds
    os.utime(left, (changed, changed))
    cache_of(tmp_path, paired_store(), world_size=n_writers)
    assert left.exists() == stays


# ------------------------------------------------------------------------------------------- size


def test_the_size_is_told_beforehand_and_is_that_of_the_files(tmp_path: Path):
    store = paired_store()
    description = describe_cache(store, CacheRequest(n_tokens=40 * CONTEXT, dtype="float32"))
    assert description.n_bytes_a_sequence == 16 * 32 * 4 + 16 * 4 + 8
    cache_of(tmp_path, store, n_a_shard=40)
    size = (tmp_path / "shard-000000.safetensors").stat().st_size
    assert 0 <= size - 40 * description.n_bytes_a_sequence < 1024  # the header of safetensors


def test_a_cache_that_does_not_fit_on_the_disk_is_refused_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free=2120 * 30 - 1))
    with pytest.raises(
        SaveError, match=r"needs 0\.000 GB for 40 sequences of 2,120 bytes \(float32\); .* room for 29 sequences"
    ):
        cache_of(tmp_path / "cache", paired_store())
    assert not (tmp_path / "cache").exists()
    # What is there already needs no room.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free=2120 * 40))
    cache_of(tmp_path / "cache", paired_store())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free=0))
    cache_of(tmp_path / "cache", paired_store())


class Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_a_write_that_the_disk_refuses_is_named_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sae_lens_crosscoder.activations.disk_cache.shards.save_file", full)
    with pytest.raises(SaveError, match=r"shard-000000.safetensors could not be written: No space left"):
        cache_of(tmp_path, paired_store())
    assert [path.name for path in tmp_path.iterdir()] == ["cache.json"]


# ------------------------------------------------------------------------------------------ errors


def test_a_writer_that_makes_something_else_is_refused(tmp_path: Path):
    cache_of(tmp_path, paired_store())
    with pytest.raises(ConfigError, match=r"dtype is 'float32' in the cache, this command has 'bfloat16'"):
        cache_of(tmp_path, paired_store(), dtype="bfloat16", n_a_shard=8)
    with pytest.raises(ConfigError, match=r"origin\.first_sequences\.0 is"):
        cache_of(tmp_path, paired_store(data=token_dataset(seed=9)))
    assert len(list(tmp_path.glob("shard-*"))) == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_tokens": 0}, "holds nothing"),
        ({"rank": 2, "world_size": 2}, "rank=2 is none of 2 writers"),
        ({"rank": -1}, "rank=-1 is none of 1 writers"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(fields: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        CacheRequest(**{"n_tokens": 100, **fields})
