from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from datasets import Dataset, IterableDataset
from helpers import CONTEXT, fresh_tokenizer, text_dataset, token_dataset
from streams import BrokenStream, broken_files

from sae_lens_crosscoder import DatasetConfig
from sae_lens_crosscoder.activations.datasets import SequenceFormat, load_documents, mix, packed_sequences
from sae_lens_crosscoder.activations.steady_stream import steady
from sae_lens_crosscoder.activations.stream_care import Patience, StreamCare
from sae_lens_crosscoder.activations.stream_faults import fault_of
from sae_lens_crosscoder.errors import ConfigError, DamagedError, DataError, NotFoundError, StreamError, WaitStopped

FORM = SequenceFormat(CONTEXT)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """The waits that were asked for, in place of waiting."""
    asked: list[float] = []
    monkeypatch.setattr(StreamCare, "wait", lambda self, seconds: asked.append(seconds))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return asked


def packed(stream: Any, title: str = "words") -> IterableDataset:
    return packed_sequences(stream, DatasetConfig(label=title), fresh_tokenizer(), FORM)


def ids(stream: Any) -> list[list[int]]:
    return [row["input_ids"] for row in stream]


# ------------------------------------------------------------------------------------------ what an error means


def of_library(name: str, library: str, **fields: Any) -> Exception:
    """An error as a library has it that need not be installed."""
    return type(name, (Exception,), {"__module__": f"{library}.errors", **fields})("no")


def answered(status: int) -> list[Exception]:
    return [
        of_library("HTTPStatusError", "httpx", response=SimpleNamespace(status_code=status)),
        of_library("ClientResponseError", "aiohttp", status=status),
    ]


def test_errors_of_the_way_to_a_server_pass_and_refusals_stay():
    passing: list[Exception] = [
        ConnectionError("Server Disconnected"),
        ConnectionResetError(104, "reset"),
        TimeoutError(),
        OSError(5, "input/output error"),
        OSError("the server sent less than it said"),
        of_library("ReadTimeout", "httpx"),
        of_library("ClientPayloadError", "aiohttp"),
        *(error for status in (408, 425, 429, 500, 502, 503, 504) for error in answered(status)),
    ]
    assert [fault_of(error) for error in passing] == ["broken"] * len(passing)
    staying: list[Exception] = [
        FileNotFoundError(2, "gone"),
        PermissionError(13, "no"),
        OSError(28, "No space left on device"),
        ValueError("a mistake of the one who wrote the generator"),
        DataError("our own"),
        *(error for status in (400, 401, 403, 404, 410, 416) for error in answered(status)),
    ]
    assert [fault_of(error) for error in staying] == ["final"] * len(staying)


def test_what_an_error_comes_from_counts_and_a_status_before_all():
    wrapped = RuntimeError("while reading")
    wrapped.__cause__ = ConnectionError("gone")
    assert fault_of(wrapped) == "broken"
    refused = ConnectionError("while reading")
    refused.__cause__ = answered(403)[0]
    assert fault_of(refused) == "final"


# ----------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("n_failures", [1, 3])
@pytest.mark.parametrize("at", [0, 1, 17, 299])
def test_a_stream_that_breaks_goes_on_at_the_very_document(waits: list[float], at: int, n_failures: int):
    texts = text_dataset(300)["text"]
    stream = BrokenStream(texts, {at: n_failures})
    read = [row["text"] for row in steady(stream.dataset(), "words", StreamCare())]
    assert read == list(texts)
    assert waits == [1.0, 2.0, 4.0][:n_failures]


@pytest.mark.parametrize("kind", ["generator", "arrow", "parquet", "json"])
@pytest.mark.parametrize("mixture", [False, True])
def test_a_mixture_whose_streams_break_gives_the_very_sequences_of_one_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, mixture: bool
):
    def sequences(breaks: bool) -> list[Any]:
        with broken_files(monkeypatch, share=0.5 if breaks else 0) as faults:
            streams = [
                packed(steady(data_of(kind, tmp_path, seed, 7 if breaks else 0), f"d{seed}", StreamCare()))
                for seed in range(3 if mixture else 1)
            ]
            rows = [*itertools.islice(mix([s.skip(3) for s in streams], [0.5, 0.3, 0.2], seed=1), 400)]
        assert (kind != "generator" and faults.n_injected > 0) == (breaks and kind != "generator")
        return rows

    unbroken = sequences(False)
    assert len(unbroken) > 60
    assert sequences(True) == unbroken


def data_of(kind: str, folder: Path, seed: int, every: int) -> Any:
    data = Dataset.from_dict({"text": [f"{seed} {i} {text}" for i, text in enumerate(text_dataset(300)["text"])]})
    if kind == "generator":
        return BrokenStream(data["text"], dict.fromkeys(range(5, 300, every), 2) if every else {}).dataset()
    if kind == "arrow":
        return data.to_iterable_dataset(num_shards=3)
    files = [str(folder / f"{seed}-{i}.{kind}") for i in range(3)]
    for i, file in enumerate(files):
        part = data.shard(3, i)
        part.to_parquet(file, batch_size=20) if kind == "parquet" else part.to_json(file)
    return load_documents(DatasetConfig(path=kind, data_files=files))


@pytest.mark.parametrize("n_before", [1, 50, 150])
def test_a_position_that_was_saved_between_breaks_is_that_of_an_unbroken_stream(n_before: int):
    def stream(breaks: bool) -> IterableDataset:
        failures = {n: 1 for n in range(3, 300, 40) if breaks}
        broken = [BrokenStream(text_dataset(300)["text"], failures).dataset() for _ in range(2)]
        made = [packed(steady(data, f"d{i}", StreamCare())) for i, data in enumerate(broken)]
        return mix(made, [0.6, 0.4], seed=3)

    unbroken = ids(stream(False))
    first = stream(True)
    head = [row["input_ids"] for row in itertools.islice(first, n_before)]
    position = json.loads(json.dumps(first.state_dict()))
    for breaks in (True, False):
        second = stream(breaks)
        second.load_state_dict(position)
        assert head + ids(second) == unbroken


def test_the_position_of_a_stream_is_that_without_care():
    plain, cared = text_dataset(60).to_iterable_dataset(), steady(text_dataset(60), "words", StreamCare())
    positions: list[Any] = []
    for stream in (plain, cared):
        packed_stream = packed(stream)
        list(itertools.islice(packed_stream, 9))
        positions.append(packed_stream.state_dict())
    assert positions[0] == positions[1]


def test_waits_double_up_to_five_minutes_and_are_told(waits: list[float], caplog: pytest.LogCaptureFixture):
    stream = BrokenStream(["a", "b", "c"], {1: 12}).dataset()
    assert len(list(steady(stream, "words", StreamCare(Patience(retries=12))))) == 3
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 12
    assert lines[1] == (
        "Data set 'words' broke at document 2 of shard 1 of 1 (connection reset). It is opened anew there in 2 s, "
        "retry 2 of 12."
    )


def test_a_wait_after_more_failures_than_a_power_of_two_holds_is_the_longest():
    assert Patience(retries=10_000).wait_seconds(9_000) == 300


def test_retries_are_counted_anew_after_every_document(waits: list[float]):
    stream = BrokenStream(["a", "b", "c", "d"], dict.fromkeys(range(4), 2)).dataset()
    assert len(list(steady(stream, "words", StreamCare(Patience(retries=2, retry_seconds=0.5))))) == 4
    assert waits == [0.5, 1.0] * 4


def test_after_the_last_retry_the_error_says_where_and_what_to_do(waits: list[float]):
    stream = steady(BrokenStream(["a", "b"], {1: 100}).dataset(), "words", StreamCare(Patience(retries=3)))
    with pytest.raises(
        StreamError,
        match=r"'words' broke at document 2 of shard 1 of 1 and did not come back in 3 retries: connection reset.*"
        r"--resume auto.*stream_retries",
    ):
        list(stream)
    assert waits == [1, 2, 4]


@pytest.mark.parametrize("error", [*answered(403), PermissionError(13, "not yours"), FileNotFoundError(2, "gone")])
def test_a_refusal_is_not_tried_again(waits: list[float], error: Exception):
    stream = steady(BrokenStream(["a", "b"], {1: 1}, error).dataset(), "words", StreamCare())
    with pytest.raises(DataError, match=r"'words' cannot be read at document 2 .*may read it"):
        list(stream)
    assert waits == []


def test_a_mistake_in_a_generator_stays_what_it_is(waits: list[float]):
    stream = steady(BrokenStream(["a", "b"], {1: 1}, ZeroDivisionError("mine")).dataset(), "words", StreamCare())
    with pytest.raises(ZeroDivisionError, match="mine"):
        list(stream)
    assert waits == []


def test_a_wait_ends_soon_when_the_run_is_asked_to_stop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    asked = iter([False, False, True])
    care = StreamCare(Patience(retry_seconds=200), stops=[lambda: next(asked)])
    stream = steady(BrokenStream(["a", "b"], {1: 1}).dataset(), "words", care)
    with pytest.raises(WaitStopped):
        list(stream)


@pytest.mark.parametrize(("retries", "seconds"), [(-1, 1.0), (1, 0.0), (1, float("inf")), (1, float("nan"))])
def test_a_patience_that_cannot_be_is_refused(retries: int, seconds: float):
    with pytest.raises(ConfigError, match="stream_retries"):
        Patience(retries, seconds)


def test_a_server_that_fails_at_the_opening_is_tried_again(waits: list[float], monkeypatch: pytest.MonkeyPatch):
    opened = iter([*answered(503), *answered(429), token_dataset(5)])

    def load(*_: Any, **__: Any) -> Any:
        made = next(opened)
        if isinstance(made, Exception):
            raise made
        return made

    monkeypatch.setattr("sae_lens_crosscoder.activations.datasets.load_dataset", load)
    assert len(load_documents(DatasetConfig(path="of/hub"), StreamCare())) == 5
    assert waits == [1, 2, 4, 8]
    opened = iter([*answered(503)])
    with pytest.raises(StreamError, match=r"'hub' broke at its opening and did not come back in 0 retries"):
        load_documents(DatasetConfig(path="of/hub"))
    opened = iter([*answered(401)])
    with pytest.raises((DataError, NotFoundError, Exception)):
        load_documents(DatasetConfig(path="of/hub"), StreamCare())


# ----------------------------------------------------------------------------------------------- bad shards


def damaged(folder: Path, kind: str) -> Iterator[str]:
    """Three files of a data set, of which the second cannot be decoded."""
    data = text_dataset(30)
    for i in range(3):
        file = folder / f"part{i}.{kind}"
        part = data.shard(3, i)
        part.to_parquet(str(file)) if kind == "parquet" else part.to_json(str(file))
        if i == 1:
            content = file.read_bytes()
            if kind == "parquet":  # the footer stays, a page of data does not
                content = content[:8] + bytes(byte ^ 0xA5 for byte in content[8:80]) + content[80:]
            else:
                content = content[: len(content) // 2] + b'"\x00{{ not json\n' + content[len(content) // 2 :]
            file.write_bytes(content)
        yield str(file)


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_a_shard_that_cannot_be_decoded_is_named(tmp_path: Path, waits: list[float], kind: str):
    files = list(damaged(tmp_path, kind))
    stream = steady(load_documents(DatasetConfig(path=kind, data_files=files)), "words", StreamCare())
    with pytest.raises(
        DamagedError, match=rf"Shard 2 of 3 \(.*part1\.{kind}\) of data set 'words' cannot be decoded at document \d+.*"
        r"--skip-bad-shards"
    ):  # fmt: skip
        list(stream)
    assert waits == []


@pytest.mark.parametrize("kind", ["parquet", "json"])
def test_a_shard_that_cannot_be_decoded_is_left_out_when_that_is_asked_for_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
):
    files = list(damaged(tmp_path, kind))
    care = StreamCare(Patience(skip_bad_shards=True))
    stream = steady(load_documents(DatasetConfig(path=kind, data_files=files)), "words", care)
    shards = [text_dataset(30).shard(3, i)["text"] for i in range(3)]
    for _ in range(2):
        read = [row["text"] for row in stream]
        assert [text for text in read if text not in shards[1]] == [*shards[0], *shards[2]]
    assert len(care.skipped) == 1
    assert "part1" in care.skipped[0]
    assert caplog.text.count("Left out because of skip_bad_shards") == 1


def test_a_folder_of_save_to_disk_that_was_cut_off_is_named(tmp_path: Path):
    text_dataset(30).save_to_disk(tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(DataError, match=r"saved' cannot be opened: .*files are whole"):
        load_documents(DatasetConfig(path=str(tmp_path / "saved")))
