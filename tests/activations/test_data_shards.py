"""The documents of a run divided into parts, each of which a store reads."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import torch
from datasets import Dataset, IterableDataset
from helpers import paired_store, store_config, text_dataset, tiny_pair, token_dataset
from streams import BrokenStream

from sae_lens_crosscoder import DatasetConfig, PairedActivationsStore
from sae_lens_crosscoder.activations.batches import ShardedBatches, TrainingBatches
from sae_lens_crosscoder.activations.datasets import load_documents
from sae_lens_crosscoder.activations.steady_stream import steady
from sae_lens_crosscoder.activations.stream_care import Patience, StreamCare
from sae_lens_crosscoder.ranks import Ranks

pytestmark = pytest.mark.filterwarnings("ignore:The data set ended")

N_DOCUMENTS = 240
KINDS = ["in memory", "one file", "three files", "four files", "generator"]


def documents(kind: str, folder: Path, rows: Dataset) -> Any:
    """The rows as one opened data set."""
    if kind == "in memory":
        return rows
    if kind == "generator":

        def rows_one_by_one() -> Any:
            yield from rows

        return IterableDataset.from_generator(rows_one_by_one)
    n_files = {"one file": 1, "three files": 3, "four files": 4}[kind]
    name = uuid4().hex
    files = [str(folder / f"{name}-{i}.parquet") for i in range(n_files)]
    for i, file in enumerate(files):
        rows.shard(n_files, i).to_parquet(file)
    return load_documents(DatasetConfig(path="parquet", data_files=files))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.mark.parametrize("n_parts", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_every_document_is_in_exactly_one_part(tmp_path: Path, kind: str, n_parts: int) -> None:
    data = documents(kind, tmp_path, text_dataset(N_DOCUMENTS))
    parts = [[row["text"] for row in steady(data, "d", StreamCare(), part, n_parts)] for part in range(n_parts)]
    assert sorted(itertools.chain(*parts)) == sorted(text_dataset(N_DOCUMENTS)["text"])
    assert {len(part) for part in parts} == {N_DOCUMENTS // n_parts}


@pytest.mark.parametrize("mixture", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_no_sequence_is_read_by_two_stores_nor_both_held_out_and_trained_on(
    tmp_path: Path, kind: str, mixture: bool
) -> None:
    labels = ["a", "b"] if mixture else ["a"]
    rows = [token_dataset(N_DOCUMENTS, seed=seed) for seed, _ in enumerate(labels)]
    model, seen, held_out = tiny_pair(), [], []
    for shard in range(2):
        data = [documents(kind, tmp_path, of_label) for of_label in rows]
        configs = [DatasetConfig(label=label) for label in labels]
        cfg = store_config(n_eval_sequences=3, n_shards=2, shard=shard)
        store = PairedActivationsStore(model, data, configs, cfg)
        one_epoch = {tuple(row["input_ids"]) for row in store.dataset}  # type: ignore[union-attr]
        seen.append(one_epoch)
        held_out.append({tuple(row.tolist()) for head in store.eval_sequences.values() for row in head})
        assert len(one_epoch) == len(labels) * (N_DOCUMENTS // 2 - 3)
        assert len(held_out[-1]) == len(labels) * 3
    assert not seen[0] & seen[1]
    assert not (held_out[0] | held_out[1]) & (seen[0] | seen[1])
    every = {tuple(row) for of_label in rows for row in of_label["input_ids"]}
    assert seen[0] | seen[1] | held_out[0] | held_out[1] == every


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_goes_on_at_its_position(tmp_path: Path, kind: str) -> None:
    def store() -> PairedActivationsStore:
        data = documents(kind, tmp_path, token_dataset(N_DOCUMENTS))
        return paired_store(data=data, n_eval_sequences=2, n_shards=2, shard=1)

    unbroken = store()
    batches = list(itertools.islice(unbroken.get_data_loader(), 60))  # more than an epoch
    assert unbroken.n_epochs_finished > 0
    for n_before in (7, 51):
        first, second = store(), store()
        for _ in range(n_before):
            next(first)
        first.save(str(tmp_path / "state.safetensors"))
        second.load(str(tmp_path / "state.safetensors"))
        for expected in batches[n_before:]:
            assert torch.equal(next(second), expected)


def failing(function: Callable[..., Any], at: int) -> Callable[..., Any]:
    calls = itertools.count(1)

    def once(*arguments: Any) -> Any:
        if next(calls) == at:
            raise MemoryError
        return function(*arguments)

    return once


@pytest.mark.parametrize("at", [3, 4, 9, 10])
@pytest.mark.parametrize("where", ["a shard", "their joining"])
def test_where_one_part_of_a_batch_fails_the_others_are_not_lost(
    monkeypatch: pytest.MonkeyPatch, where: str, at: int
) -> None:
    def two() -> list[PairedActivationsStore]:
        return [paired_store(model, n_shards=2, shard=shard) for shard in range(2)]

    def joined(stores: list[PairedActivationsStore]) -> ShardedBatches:
        return ShardedBatches([TrainingBatches(store) for store in stores], Ranks(), gathers=False)

    model = tiny_pair()
    unbroken, stores = joined(two()), two()
    expected = [next(unbroken) for _ in range(12)]
    broken, found = joined(stores), []
    if where == "a shard":
        monkeypatch.setattr(PairedActivationsStore, "harvest", failing(PairedActivationsStore.harvest, at))
    else:
        patched = SimpleNamespace(cat=failing(torch.cat, at))
        monkeypatch.setattr("sae_lens_crosscoder.activations.batches.torch", patched)
    while len(found) < 12:
        try:
            found.append(next(broken))
        except MemoryError:
            for store in stores:
                vars(store)["_dataloader"] = None  # as a new process has it
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ["three files", "four files"])
def test_a_damaged_file_of_a_part_is_named_and_left_out(tmp_path: Path, kind: str) -> None:
    data = documents(kind, tmp_path, text_dataset(N_DOCUMENTS))
    file = sorted(tmp_path.glob("*.parquet"))[2]
    content = file.read_bytes()
    file.write_bytes(content[:8] + bytes(byte ^ 0xA5 for byte in content[8:80]) + content[80:])
    care = StreamCare(Patience(skip_bad_shards=True))
    for part in range(2):
        assert len(list(steady(data, "words", care, part, 2))) > 0
    assert care.skipped
    assert all(file.name in name for name in care.skipped)


def test_a_stream_that_breaks_gives_the_parts_of_one_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StreamCare, "wait", lambda self, seconds: None)
    texts = list(text_dataset(60)["text"])
    for part in range(3):
        stream = BrokenStream(texts, dict.fromkeys(range(1, 60, 4), 2)).dataset()
        assert [row["text"] for row in steady(stream, "words", StreamCare(), part, 3)] == texts[part::3]
