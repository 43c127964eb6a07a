"""Data that breaks, ends, cannot be decoded or holds nothing, in whole runs."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from faults.damage import N_STEPS, assert_nothing_lost, checkpoints, result, train
from helpers import (
    CONTEXT,
    batchtopk_config,
    paired_store,
    run_config,
    text_dataset,
    tiny_pair,
    tiny_tokenizer,
    token_dataset,
)
from streams import BrokenStream

from sae_lens_crosscoder import CrosscoderTrainer, DatasetConfig, PairedActivationsStore
from sae_lens_crosscoder.activations import CacheRequest, write_cache
from sae_lens_crosscoder.activations.stream_care import StreamCare
from sae_lens_crosscoder.cli import EXIT_INTERRUPTED, main
from sae_lens_crosscoder.errors import (
    DamagedError,
    DataError,
    NonFiniteError,
    StreamError,
    TrainingInterrupted,
)

pytestmark = pytest.mark.filterwarnings("ignore:The data set ended")

TEXTS = [str(text) for text in text_dataset(700)["text"]]
TEXT: dict[str, Any] = {"prepend_bos": True, "stream_retries": 2}
MIXTURE: dict[str, Any] = {
    **TEXT,
    "dataset_path": "",
    "datasets": [DatasetConfig(label=label, weight=weight) for label, weight in (("a", 0.5), ("b", 0.3), ("c", 0.2))],
}


def data(failures: dict[int, int], mixture: bool) -> Any:
    if not mixture:
        return BrokenStream(TEXTS, failures).dataset()
    return {label: BrokenStream(TEXTS[i * 200 : i * 200 + 200], failures).dataset() for i, label in enumerate("abc")}


def cache_of_run(folder: Path, documents: Dataset) -> None:
    """A cache of all that the run `train` makes would read of the documents."""
    cfg = run_config(batchtopk_config(dtype="float64"), dtype="float64")
    store = PairedActivationsStore.from_config(tiny_pair(dtype=torch.float64), cfg, documents)
    n_sequences = len(documents) - store.cfg.n_eval_sequences
    write_cache(store, folder, CacheRequest(n_sequences * CONTEXT, dtype="float64", shard_bytes=30_000))


@pytest.fixture
def few_documents_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents are read as training needs them, and not all at its start."""
    monkeypatch.setattr("sae_lens_crosscoder.activations.datasets._DOCUMENTS_A_BATCH", 5)


@pytest.mark.parametrize("mixture", [False, True])
@pytest.mark.parametrize("n_prefetched", [0, 2])
def test_a_run_whose_streams_break_equals_one_whose_streams_do_not(
    tmp_path: Path, few_documents_at_once: None, mixture: bool, n_prefetched: int
) -> None:
    fields = {**(MIXTURE if mixture else TEXT), "prefetch_llm_batches": n_prefetched}
    train(tmp_path / "unbroken", data({}, mixture), **fields)
    failures = {n: 1 + n % 2 for n in range(3, 700, 7)}
    train(tmp_path / "broken", data(failures, mixture), **fields)
    expected, found = result(tmp_path / "unbroken"), result(tmp_path / "broken")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(("mixture", "at"), [(False, 16), (False, 21), (True, 8), (True, 11)])
@pytest.mark.parametrize("n_prefetched", [0, 2])
def test_a_stream_that_does_not_come_back_costs_nothing(
    tmp_path: Path, few_documents_at_once: None, mixture: bool, n_prefetched: int, at: int
) -> None:
    fields = {**(MIXTURE if mixture else TEXT), "prefetch_llm_batches": n_prefetched}
    train(tmp_path / "unbroken", data({}, mixture), **fields)
    with pytest.raises(
        StreamError,
        match=rf"stopped after step \d+.*'[\w-]+' broke at document {at + 1} of .* in 2 retries: connection.*goes on",
    ):
        train(tmp_path / "broken", data({3: 1, at: 100}, mixture), **fields)
    assert len(checkpoints(tmp_path / "broken")) > 0
    again = data({at + 1: 2, at + 9: 1}, mixture)
    assert_nothing_lost(tmp_path / "broken", result(tmp_path / "unbroken"), data=again, **fields)


@pytest.mark.parametrize(("mixture", "at"), [(False, 21), (False, 24), (True, 16), (True, 18)])
def test_a_stream_of_divided_documents_that_does_not_come_back_costs_nothing(
    tmp_path: Path, few_documents_at_once: None, mixture: bool, at: int
) -> None:
    fields = {**(MIXTURE if mixture else TEXT), "n_data_shards": 2}
    train(tmp_path / "unbroken", data({}, mixture), **fields)
    with pytest.raises(StreamError, match=r"stopped after step \d+.*goes on"):
        train(tmp_path / "broken", data({at: 100}, mixture), **fields)
    assert len(checkpoints(tmp_path / "broken")) > 0
    assert_nothing_lost(tmp_path / "broken", result(tmp_path / "unbroken"), data=data({}, mixture), **fields)


def test_a_resumed_run_may_be_broken_again(tmp_path: Path, few_documents_at_once: None) -> None:
    train(tmp_path / "unbroken", data({}, False), **TEXT)
    for at in (15, 18, 19, 23):
        with pytest.raises(StreamError):
            train(tmp_path / "broken", data({at: 100}, False), **TEXT)
    assert_nothing_lost(tmp_path / "broken", result(tmp_path / "unbroken"), data=data({}, False), **TEXT)


def test_a_failed_pass_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def tokens_of(fails: bool) -> list[torch.Tensor]:
        store, seen = paired_store(data=token_dataset(60)), list[torch.Tensor]()
        harvest, n_calls = store.harvest, [0]

        def failing(tokens: torch.Tensor) -> Any:
            n_calls[0] += 1
            if fails and n_calls[0] % 3 == 1:
                raise MemoryError
            seen.append(tokens)
            return harvest(tokens)

        monkeypatch.setattr(store, "harvest", failing)
        while len(seen) < 40:  # over the end of the data
            try:
                store.add_pass()
            except MemoryError:
                continue
            store.buffer.free = torch.arange(len(store.buffer.pool))
        assert sum(store.epochs.n_read.values()) == 4 * 40
        return seen

    for one, other in zip(tokens_of(False), tokens_of(True), strict=True):
        assert torch.equal(one, other)


def ask_to_stop() -> None:
    """Send SIGTERM to this process when it listens to it: streams are read before the training begins."""
    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("n_prefetched", [0, 2])
def test_a_run_is_asked_to_stop_while_it_waits_for_a_stream(
    tmp_path: Path, few_documents_at_once: None, n_prefetched: int
) -> None:
    fields = {**TEXT, "prefetch_llm_batches": n_prefetched}
    train(tmp_path / "unbroken", data({}, False), **fields)
    stopped = [0.0]

    def stop(self: StreamCare, seconds: float) -> None:
        if seconds > 100:
            stopped[0] = time.monotonic()
            threading.Thread(target=ask_to_stop).start()
        wait(self, seconds)

    wait = StreamCare.wait
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StreamCare, "wait", stop)
        with pytest.raises(TrainingInterrupted, match=r"while it waited for data|was interrupted after") as interrupted:
            train(tmp_path / "broken", data({20: 1}, False), **{**fields, "stream_retry_seconds": 200.0})
    assert time.monotonic() - stopped[0] < 100  # without the signal it waits for 200 seconds
    assert interrupted.value.checkpoint is not None
    assert_nothing_lost(tmp_path / "broken", result(tmp_path / "unbroken"), data=data({}, False), **fields)


@pytest.mark.parametrize("n_prefetched", [0, 2])
def test_a_run_is_asked_to_stop_while_it_waits_for_a_shard_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_prefetched: int
) -> None:
    stopped: list[float] = []

    def stop(self: StreamCare, seconds: float) -> None:
        if not stopped:
            stopped.append(time.monotonic())
            threading.Thread(target=ask_to_stop).start()
        wait(self, seconds)

    wait = StreamCare.wait
    cache = tmp_path / "cache"
    cache_of_run(cache, token_dataset(90))
    shards = sorted(cache.glob("shard-*"))
    manifest = cache / "manifest-00000.json"
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**values, "shards": values["shards"][: len(shards) // 2]}))
    fields = {"use_cached_activations": True, "cached_activations_path": str(cache)}
    monkeypatch.setattr(StreamCare, "wait", stop)
    with pytest.raises(TrainingInterrupted) as interrupted:
        train(tmp_path, prefetch_llm_batches=n_prefetched, **fields)
    assert time.monotonic() - stopped[0] < 100  # the reader's own patience is ten minutes
    assert interrupted.value.checkpoint is not None
    manifest.write_text(json.dumps(values))
    train(tmp_path / "unbroken", **fields)
    assert_nothing_lost(tmp_path, result(tmp_path / "unbroken"), **fields)


# --------------------------------------------------------------------------------------- numbers that are none


def test_a_batch_that_is_no_number_costs_nothing(tmp_path: Path, unbroken: dict[str, torch.Tensor]) -> None:
    pair = tiny_pair(dtype=torch.float64, tokenizer=tiny_tokenizer())
    harvest, n_passes = pair.source_activations, [0]

    def poisoned(tokens: torch.Tensor) -> list[torch.Tensor]:
        parts = [part.clone() for part in harvest(tokens)]
        n_passes[0] += 1
        if n_passes[0] == 22:
            parts[1][2, 5, 3] = torch.nan
        return parts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair, "source_activations", poisoned)
        with pytest.raises(NonFiniteError, match=r"stopped after step \d+.*source 'chat'.*goes on"):
            train(tmp_path, model=pair)
    assert_nothing_lost(tmp_path, unbroken)


# ------------------------------------------------------------------------------------------------ ends, epochs


def test_a_data_set_that_ends_says_once_how_many_epochs_and_tokens_were_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.warns(UserWarning, match=r"The data set ended") as told:
        train(tmp_path, token_dataset(50), n_eval_batches=1)
    said = [str(warning.message) for warning in told if "The data set ended" in str(warning.message)]
    # 50 sequences, of which 4 are held out; a pass has 4, and the 2 that are left at the end fill none.
    assert len(said) == 1
    assert said[0].startswith("The data set ended after 46 sequences (736 tokens); epoch 2 begins")
    training = json.loads((tmp_path / "output" / "metrics.json").read_text())["training"]
    (n_tokens,) = training["tokens_read"].values()
    (n_epochs,) = training["epochs"].values()
    assert n_tokens >= 64 * N_STEPS
    assert n_epochs == pytest.approx(n_tokens / 736, abs=1e-4)
    assert training["skipped_shards"] == []


def test_the_short_data_sets_of_a_mixture_are_told_with_their_own_epochs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    datasets = [DatasetConfig(label="long", weight=0.5), DatasetConfig(label="short", weight=0.5)]
    with caplog.at_level(logging.INFO):
        train(
            tmp_path,
            {"long": token_dataset(400), "short": token_dataset(30, seed=1)},
            dataset_path="",
            datasets=datasets,
        )
    assert caplog.text.count("Data set 'short' ended after 22 sequences (352 tokens) and is read again") == 1
    training = json.loads((tmp_path / "output" / "metrics.json").read_text())["training"]
    assert training["epochs"]["long"] is None
    assert training["epochs"]["short"] == pytest.approx(training["tokens_read"]["short"] / 352, abs=1e-4)
    assert training["epochs"]["short"] > 1


# ---------------------------------------------------------------------------------------------------- bad shards


def files(folder: Path, bad: int | None) -> list[str]:
    made: list[str] = []
    for i in range(6):
        path = folder / f"part{i}.jsonl"
        lines = [json.dumps({"text": text}) for text in TEXTS[16 * i : 16 * i + 16]]
        path.write_text("\n".join([*lines[:8], '{"text": "cut o', *lines[8:]] if i == bad else lines))
        made.append(str(path))
    return made


def test_a_damaged_file_ends_the_run_by_its_name_and_left_out_it_goes_on(
    tmp_path: Path, few_documents_at_once: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from sae_lens_crosscoder.activations.datasets import load_documents

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")

    def opened(folder: Path, bad: int | None) -> Any:
        folder.mkdir(exist_ok=True)
        return load_documents(DatasetConfig(path="json", data_files=files(folder, bad)))

    with pytest.raises(DamagedError, match=r"stopped after step \d+.*part1.jsonl.*--skip-bad-shards.*goes on"):
        train(tmp_path, opened(tmp_path / "bad", 1), **TEXT)
    assert len(checkpoints(tmp_path)) > 0
    train(tmp_path, opened(tmp_path / "bad", 1), skip_bad_shards=True, **TEXT)
    assert caplog.text.count("Left out because of skip_bad_shards: shard 2 of 6") == 1
    training = json.loads((tmp_path / "output" / "metrics.json").read_text())["training"]
    assert len(training["skipped_shards"]) == 1
    assert "part1.jsonl" in training["skipped_shards"][0]


def test_a_damaged_shard_of_the_cache_ends_the_run_by_its_name_and_left_out_it_goes_on(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache_of_run(cache, token_dataset(150))
    shard = sorted(cache.glob("shard-*"))[9]
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    fields = {"use_cached_activations": True, "cached_activations_path": str(cache)}
    with pytest.raises(DamagedError, match=rf"stopped after step \d+.*{shard.name}.*--skip-bad-shards.*goes on"):
        train(tmp_path, token_dataset(150), **fields)
    train(tmp_path, token_dataset(150), skip_bad_shards=True, **fields)
    training = json.loads((tmp_path / "output" / "metrics.json").read_text())["training"]
    assert training["skipped_shards"] == [f"shard 9 of the cache {cache}"]


def test_the_command_line_has_a_flag_for_it_and_a_broken_stream_an_exit_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def runner(cfg: Any) -> None:
        seen.append(cfg)
        raise StreamError("the server is gone")

    monkeypatch.setattr("sae_lens_crosscoder.training.CrosscoderTrainingRunner", runner)
    sources = [f"label={label},model_name=gpt2,hook_name=blocks.1.hook_resid_pre,d_in=8" for label in ("a", "b")]
    arguments = ["train", *(word for text in sources for word in ("--source", text)), "--dataset_path", "x"]
    arguments += ["--sae.architecture", "batchtopk_crosscoder", "--sae.d_in", "16", "--sae.d_sae", "32", "--sae.k", "4"]
    arguments += ["--train_batch_size_tokens", "64", "--training_tokens", "640"]
    assert main([*arguments, "--skip-bad-shards"]) == EXIT_INTERRUPTED
    assert main(arguments) == EXIT_INTERRUPTED
    assert [cfg.skip_bad_shards for cfg in seen] == [True, False]
    assert seen[0].fingerprint == seen[1].fingerprint
    assert "the server is gone" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- empty batches


LONG = " ".join(TEXTS[:40])
NOTHING: dict[str, list[str]] = {
    "no document": [],
    "one short document": ["owl"],
    "only short documents": ["owl"] * 9,
    "empty strings": [""] * 50,
    "white space": [" \n\t "] * 3,
    "only special tokens": ["<bos>"] * 4000,
    "one long document": [LONG],
    "empty strings between texts": [text for pair in zip(TEXTS, [""] * len(TEXTS), strict=True) for text in pair],
    "long documents that come late": [*["owl"] * 30, LONG, LONG, LONG],
}


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("name", NOTHING)
def test_no_batch_is_empty_whatever_the_documents_hold(tmp_path: Path, name: str, alone: bool) -> None:
    shapes: list[tuple[int, ...]] = []
    step = CrosscoderTrainer.step

    def watched(self: CrosscoderTrainer, batch: torch.Tensor) -> Any:
        shapes.append(tuple(batch.shape))
        assert batch.isfinite().all()
        return step(self, batch)

    documents = Dataset.from_dict({"text": NOTHING[name]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CrosscoderTrainer, "step", watched)
        message = "it trained"
        try:
            train(tmp_path, documents, n_eval_batches=1, disable_concat_sequences=alone, **TEXT)
        except DataError as error:
            message = str(error)
    assert all(shape == (64, 32) for shape in shapes)
    trains = {"empty strings between texts"}
    trains |= set() if alone else {"one long document", "long documents that come late"}
    assert len(shapes) == (N_STEPS if name in trains else 0), message
    if not shapes:
        assert "full sequences of 16 tokens" in message or "is empty" in message or "were dropped" in message


def test_tokenized_rows_that_become_too_short_give_no_short_batch(tmp_path: Path) -> None:
    rows = token_dataset(300)["input_ids"]
    mixed = [row if i % 3 == 0 or i < 20 else row[: i % 16] for i, row in enumerate(rows)]
    train(tmp_path, Dataset.from_dict({"input_ids": mixed}))
    curve = (tmp_path / "output" / "training_curve.csv").read_text().splitlines()
    assert len(curve) == 1 + N_STEPS
