from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import cache_of, paired_store, token_dataset

from sae_lens_crosscoder.activations import CacheReader
from sae_lens_crosscoder.activations.disk_cache.shards import CacheBlock
from sae_lens_crosscoder.activations.stream_care import Patience, StreamCare
from sae_lens_crosscoder.errors import ConfigError, DataError, NotFoundError, WaitStopped

N_SEQUENCES, N_SHARDS = 42, 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache of 42 sequences in 6 shards, of which the last has two."""
    cache_of(tmp_path / "cache", paired_store(data=token_dataset(60)), n_sequences=N_SEQUENCES)
    return tmp_path / "cache"


def blocks(reader: CacheReader) -> Iterator[CacheBlock]:
    while (block := reader.next_block()) is not None:
        yield block


def first_tokens(reader: CacheReader) -> list[list[int]]:
    return [block.tokens[:, 1].tolist() for block in blocks(reader)]


@pytest.mark.parametrize(
    ("n_at_once", "lengths"), [(4, [4] * 10 + [2]), (3, [3, 3, 2] * 5 + [2]), (100, [8] * 5 + [2])]
)
def test_blocks_end_with_the_shards(folder: Path, n_at_once: int, lengths: list[int]):
    assert [len(block.tokens) for block in blocks(CacheReader(folder, n_at_once))] == lengths


def test_every_epoch_has_each_sequence_once_and_an_order_of_its_own(folder: Path):
    reader = CacheReader(folder, 4, seed=3)
    epochs: list[list[list[int]]] = []
    for epoch in range(4):
        reader.begin_epoch(epoch)
        epochs.append(first_tokens(reader))
    assert all(sorted(blocks) == sorted(epochs[0]) for blocks in epochs)
    assert len({str(order) for order in epochs}) == 4
    assert [token for block in epochs[0] for token in block] == [
        row[1] for row in token_dataset(60)["input_ids"][:N_SEQUENCES]
    ]
    other = CacheReader(folder, 4, seed=4)
    other.begin_epoch(1)
    assert first_tokens(other) not in epochs


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("n_read", [0, 3, 11])
def test_a_reader_goes_on_where_another_stopped(folder: Path, epoch: int, n_read: int):
    whole, broken, resumed = (CacheReader(folder, 4) for _ in range(3))
    whole.begin_epoch(epoch)
    expected = first_tokens(whole)
    broken.begin_epoch(epoch)
    for _ in range(n_read):
        broken.next_block()
    state = json.loads(json.dumps(broken.state_dict()))
    resumed.begin_epoch(epoch)
    resumed.load_state_dict(state)
    assert first_tokens(resumed) == expected[n_read:]


def test_activations_are_the_mapped_file_and_no_copy(folder: Path, monkeypatch: pytest.MonkeyPatch):
    found = list(blocks(CacheReader(folder, 4)))
    # Blocks of one shard are views of one mapping each: as large as the shard, at the offset of their rows.
    for i, block in enumerate(found[:4]):
        storage = block.activations.untyped_storage()
        assert storage.nbytes() == 8 * 16 * 32 * 4
        assert block.activations.storage_offset() == (i % 2) * 4 * 16 * 32
    path = next(folder.glob("shard-000000*"))
    lines = Path("/proc/self/maps").read_text().splitlines() if Path("/proc/self/maps").exists() else []
    ranges = [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in lines if line.endswith(str(path))]
    address = found[0].activations.data_ptr()
    assert not lines or any(start <= address < stop for start, stop in ranges)


# ------------------------------------------------------------------------------------------ damage


def damage(path: Path, what: str) -> None:
    content = bytearray(path.read_bytes())
    if what == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif what == "truncated":
        path.write_bytes(content[:-1])
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [("flipped", "was changed: its checksum"), ("truncated", "bytes in place of"), ("deleted", "is gone")],
)
def test_a_damaged_shard_is_named_and_can_be_made_again(folder: Path, what: str, message: str):
    damage(folder / "shard-000002.safetensors", what)
    reader = CacheReader(folder, 4)
    with pytest.raises(DataError, match=rf"shard-000002\.safetensors .*{message}.* run the `cache` command again"):
        list(blocks(reader))
    (folder / "shard-000002.safetensors").unlink(missing_ok=True)
    cache_of(folder, paired_store(data=token_dataset(60)), n_sequences=N_SEQUENCES)
    assert len(first_tokens(CacheReader(folder, 4))) == 11


def test_a_damaged_shard_is_named_in_the_epoch_that_comes_to_it(folder: Path):
    reader = CacheReader(folder, 4)
    list(blocks(reader))
    again = CacheReader(folder, 4)
    damage(folder / "shard-000005.safetensors", "flipped")
    again.begin_epoch(1)
    with pytest.raises(DataError, match="shard-000005"):
        list(blocks(again))


def test_a_damaged_manifest_is_named(folder: Path):
    (folder / "manifest-00000.json").write_text('{"shards": [')
    with pytest.raises(DataError, match=r"manifest-00000\.json is damaged"):
        CacheReader(folder, 4).next_block()


def test_a_damaged_description_is_named(folder: Path):
    (folder / "cache.json").write_text('{"format": 1}')
    with pytest.raises(DataError, match=r"cache\.json is damaged"):
        CacheReader(folder, 4)


def test_a_manifest_of_another_cache_is_refused(folder: Path, tmp_path: Path):
    cache_of(tmp_path / "other", paired_store(data=token_dataset(60)), n_sequences=41)
    (tmp_path / "other" / "manifest-00000.json").replace(folder / "manifest-00001.json")
    with pytest.raises(DataError, match=r"manifest-00001\.json belongs to a cache that was described otherwise"):
        CacheReader(folder, 4).next_block()


def test_a_cache_of_another_format_is_refused(folder: Path):
    values = json.loads((folder / "cache.json").read_text())
    (folder / "cache.json").write_text(json.dumps({**values, "format": 2}))
    with pytest.raises(ConfigError, match="has format 2, this version reads 1"):
        CacheReader(folder, 4)


def test_what_is_no_cache_is_refused(tmp_path: Path):
    with pytest.raises(NotFoundError, match="There is no cache of activations at"):
        CacheReader(tmp_path / "gone", 4)


def test_the_position_in_another_cache_or_in_other_blocks_is_refused(folder: Path, tmp_path: Path):
    other = cache_of(tmp_path / "other", paired_store(data=token_dataset(60)), n_sequences=41)
    for reader in (other, CacheReader(folder, 3)):
        with pytest.raises(ConfigError, match="read another cache than"):
            CacheReader(folder, 4).load_state_dict(reader.state_dict())


def test_a_wait_for_a_shard_ends_when_it_is_asked_to(tmp_path: Path):
    cache_of(tmp_path, paired_store(), rank=1, world_size=2)
    asked: list[float] = []

    def is_asked() -> bool:
        asked.append(time.monotonic())
        return len(asked) == 3

    begun = time.monotonic()
    with pytest.raises(WaitStopped, match="asked to stop while it waited for data"):
        CacheReader(tmp_path, 4, patience_seconds=600, care=StreamCare(stops=[is_asked])).next_block()
    assert time.monotonic() - begun < 100


@pytest.mark.parametrize("how", ["flipped", "truncated", "deleted"])
def test_a_damaged_shard_is_left_out_when_that_is_asked_for_and_named_once(
    folder: Path, how: str, caplog: pytest.LogCaptureFixture
):
    whole = first_tokens(CacheReader(folder, 4))
    damage(folder / "shard-000001.safetensors", how)
    care = StreamCare(Patience(skip_bad_shards=True))
    reader = CacheReader(folder, 4, care=care)
    kept = first_tokens(reader)
    assert kept == [tokens for number, tokens in enumerate(whole) if number not in (2, 3)]  # blocks of shard 1
    for epoch in (1, 2):
        reader.begin_epoch(epoch)
        assert sorted(first_tokens(reader)) == sorted(kept)
    assert care.skipped == [f"shard 1 of the cache {folder}"]
    assert caplog.text.count("Left out because of skip_bad_shards: shard 1 of the cache") == 1
