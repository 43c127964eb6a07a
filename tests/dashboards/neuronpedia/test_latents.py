from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from neuronpedia_exports import batch_features, written_batches

from sae_lens_crosscoder.dashboards.neuronpedia.latents import (
    Latent,
    batch_files,
    clean_token,
    read_header,
    read_latents,
)
from sae_lens_crosscoder.errors import DataError

NAN = float("nan")


def latent(tmp_path: Path, **values: Any) -> Latent:
    """The first latent of the kept batches, with other values."""
    feature = {**batch_features("tiny-base")[0], **values}
    return next(read_latents(written_batches(tmp_path / "batches", [feature])))


def test_an_undefined_correlation_is_left_out_with_its_neighbours(tmp_path: Path) -> None:
    read = latent(
        tmp_path,
        correlated_neurons_indices=[4, 5, 6],
        correlated_neurons_pearson=[NAN, 0.5, 0.25],
        correlated_neurons_l1=[0.1, 0.2, NAN],
        neuron_alignment_l1=[NAN, NAN, NAN],
    )
    assert read.tables["correlated_neurons_indices"] == [5]
    assert read.tables["correlated_neurons_pearson"] == [0.5]
    assert read.tables["correlated_neurons_l1"] == [0.2]
    assert read.tables["neuron_alignment_indices"] == read.tables["neuron_alignment_values"] == []


def test_a_zero_slice_of_the_decoder_is_no_vector(tmp_path: Path) -> None:
    assert latent(tmp_path, vector=[0.0] * 16).vector == []
    assert latent(tmp_path, vector=[0.0] * 15 + [1e-30]).vector == [0.0] * 15 + [1e-30]


def test_windows_in_which_the_latent_is_silent_are_left_out_and_counted(tmp_path: Path) -> None:
    window = batch_features("tiny-base")[0]["activations"][0]
    silent = {**window, "values": [0.0] * 9}
    read = latent(tmp_path, activations=[silent, window, silent])
    assert [kept.values for kept in read.windows] == [window["values"]]
    assert read.n_silent_windows == 2
    assert read.max_activation == 3.373
    assert latent(tmp_path, activations=[silent]).max_activation == 0.0


def test_a_qualifying_token_that_is_left_out_has_no_index(tmp_path: Path) -> None:
    window = batch_features("tiny-base")[0]["activations"][0]
    windows = [{**window, "qualifying_token_index": index} for index in (-1, 0, 4)]
    read = latent(tmp_path, activations=windows)
    assert [kept.qualifying_token_index for kept in read.windows] == [None, 0, 4]


@pytest.mark.parametrize(
    ("token", "clean"),
    [
        ("a", "a"),
        (" ", " "),
        ("\n", "\n"),
        ("", "\ufffd"),
        ("\ud83d", "\ufffd"),
        ("x\udc00y", "x\ufffdy"),
        ("\ud83d\ude00", "\U0001f600"),
        ("a\0b", "a\u2400b"),
        ("\ufeffa", "\ufeffa"),
        ("\\u0000", "\\u0000"),
    ],
)
def test_tokens_become_text_that_a_database_holds(token: str, clean: str) -> None:
    assert clean_token(token) == clean


@given(st.text(st.characters(codec=None)))
def test_every_token_becomes_text_and_good_text_stays(token: str) -> None:
    clean = clean_token(token)
    assert clean
    assert "\0" not in clean
    clean.encode()
    assert clean_token(clean) == clean


def test_batches_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    written_batches(tmp_path, batch_features("tiny-base")[:1])
    for number in (10, 9, 2):
        (tmp_path / f"batch-{number}.json").write_text("{}")
    (tmp_path / "batch-x.json").write_text("")
    assert [file.name for file in batch_files(tmp_path)] == [f"batch-{i}.json" for i in (0, 2, 9, 10)]


def test_the_first_batch_says_what_the_source_is(tmp_path: Path) -> None:
    batches = written_batches(tmp_path, batch_features("tiny-chat"), "tiny-chat", sae_id_suffix="l0-20")
    header = read_header(batches)
    assert (header.name.model_id, header.name.source_id) == ("tiny-chat", "1-crosscoder-res__l0-20")
    assert (header.dataset, header.n_prompts, header.n_tokens_in_prompt) == ("words", 24, 10)


def test_a_batch_of_another_source_is_found(tmp_path: Path) -> None:
    features = batch_features("tiny-base")
    batches = written_batches(tmp_path / "batches", features[:2])
    written_batches(tmp_path / "other", features[2:], "tiny-chat")
    (tmp_path / "other" / "batch-0.json").rename(batches / "batch-1.json")
    with pytest.raises(DataError, match=r"batch-1\.json is of the source .*tiny-chat"):
        list(read_latents(batches))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ("[]", "lacks model_id"), ('{"features": []}', "lacks model_id"), ("\x80", "lacks|read")],
)
def test_files_that_are_no_batches_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "batch-0.json").write_text(text, "latin-1")
    with pytest.raises(DataError, match=rf"batch-0\.json.*{message}"):
        read_header(tmp_path)


@pytest.mark.parametrize("features", [[{"feature_index": 0}], [7], {"0": {}}])
def test_batches_of_another_sae_dashboard_are_named(tmp_path: Path, features: Any) -> None:
    with pytest.raises(
        DataError, match=r"batch-0\.json is no batch of sae-dashboard: .*lacks (dataset, n_prompts|latents)"
    ):
        read_header(written_batches(tmp_path, features))


def test_what_a_latent_lacks_is_named(tmp_path: Path) -> None:
    feature = batch_features("tiny-base")[0]
    del feature["vector"]
    with pytest.raises(DataError, match=r"latent 0 cannot be exported: it lacks 'vector'\."):
        list(read_latents(written_batches(tmp_path, [feature])))


def test_a_batch_without_latents_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"batch-0\.json is no batch of sae-dashboard: it lacks latents"):
        read_header(written_batches(tmp_path, []))


def test_the_kept_batches_are_what_sae_dashboard_writes() -> None:
    features = batch_features("tiny-base")
    assert all(json.dumps(feature) for feature in features)
    assert [feature["feature_index"] for feature in features] == list(range(10))
    assert not any(any(window["values"]) for window in features[3]["activations"])
    assert features[4]["frac_nonzero"] == 1.0
