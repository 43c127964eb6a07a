from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from neuronpedia_exports import BATCHES, MODELS, SOURCE_ID, batch_features, export
from neuronpedia_server import refusal

from sae_lens_crosscoder.dashboards.neuronpedia import SourceName
from sae_lens_crosscoder.dashboards.neuronpedia.latents import Latent, Window, read_latents
from sae_lens_crosscoder.dashboards.neuronpedia.payloads import PayloadWriter, payload_feature
from sae_lens_crosscoder.dashboards.neuronpedia.validator import validate_payloads

NAME = SourceName("tiny-base", "crosscoder-res", 1)


@pytest.fixture(scope="module")
def first() -> Latent:
    """A latent that fires."""
    return next(read_latents(BATCHES / "tiny-base"))


def written(folder: Path, latents: list[Latent]) -> list[dict[str, Any]]:
    writer = PayloadWriter(folder, NAME)
    for latent in latents:
        writer.add(latent)
    writer.close()
    files = [folder / f"payload-{number}.json" for number in range(writer.n_files)]
    assert sorted(folder.glob("*")) == sorted(files)
    return [json.loads(file.read_text("utf-8")) for file in files]


@pytest.mark.parametrize("model", MODELS)
def test_a_payload_holds_what_the_batches_say_of_the_latents_that_fire(tmp_path: Path, model: str) -> None:
    export(tmp_path / "out")
    (file,) = (tmp_path / "out" / "payloads" / model / SOURCE_ID).iterdir()
    payload = json.loads(file.read_text())
    assert refusal(payload) is None
    assert (payload["modelId"], payload["source"]) == (model, SOURCE_ID)
    features = {feature["feature_index"]: feature for feature in batch_features(model)}
    assert [feature["index"] for feature in payload["features"]] == [index for index in features if index != 3]
    for sent in payload["features"]:
        feature = features[sent["index"]]
        assert sent["density"] == feature["frac_nonzero"]
        assert [logit["token"] for logit in sent["topLogits"]] == feature["pos_str"]
        assert [logit["value"] for logit in sent["bottomLogits"]] == feature["neg_values"]
        windows = [window for window in feature["activations"] if max(window["values"]) > 0]
        assert [window["values"] for window in sent["activations"]] == [window["values"] for window in windows]
        assert [window["tokens"] for window in sent["activations"]] == [window["tokens"] for window in windows]
        shares = [window["bin_contains"] if window["bin_contains"] >= 0 else None for window in windows]
        assert [window["quantileFraction"] for window in sent["activations"]] == shares
        assert None in shares


@pytest.mark.parametrize(
    ("n_tokens", "largest", "expected"),
    [
        (1_024, 1_023, (0, 1_024)),
        (1_025, 0, (0, 1_024)),
        (1_025, 1_024, (1, 1_025)),
        (3_000, 1_500, (988, 2_012)),
        (3_000, 2_999, (1_976, 3_000)),
        (3_000, 100, (0, 1_024)),
    ],
)
def test_long_windows_are_cut_around_the_largest_activation(
    first: Latent, n_tokens: int, largest: int, expected: tuple[int, int]
) -> None:
    tokens, values = [f"t{i}" for i in range(n_tokens)], [0.5] * n_tokens
    values[largest] = 2.0
    sent = payload_feature(replace(first, windows=[Window(tokens, values, -1, 2.0, -1, None)]))["activations"][0]
    assert (sent["tokens"], sent["values"]) == (tokens[slice(*expected)], values[slice(*expected)])
    assert max(sent["values"]) == 2.0


def test_no_more_than_20_logits_are_sent_and_they_are_the_first(first: Latent) -> None:
    tables = {**first.tables, "pos_str": [f"t{i}" for i in range(30)], "pos_values": [30.0 - i for i in range(30)]}
    sent = payload_feature(replace(first, tables=tables))
    assert sent["topLogits"] == [{"token": f"t{i}", "value": 30.0 - i} for i in range(20)]
    assert len(sent["bottomLogits"]) == 10


def test_no_more_than_128_latents_are_in_a_payload_and_dead_ones_are_left_out(tmp_path: Path, first: Latent) -> None:
    alive = [replace(first, index=index, windows=first.windows[:1]) for index in range(300)]
    dead = [replace(latent, index=latent.index + 300, windows=[]) for latent in alive]
    payloads = written(tmp_path / "payloads", [latent for pair in zip(alive, dead, strict=True) for latent in pair])
    assert [len(payload["features"]) for payload in payloads] == [128, 128, 44]
    assert [feature["index"] for payload in payloads for feature in payload["features"]] == list(range(300))
    assert validate_payloads(tmp_path / "payloads") == []


def test_payloads_stay_below_the_size_that_hosts_accept(tmp_path: Path, first: Latent) -> None:
    long = Window(["\u00e9\u00e9\u00e9\u00e9"] * 1_000, [0.123456789] * 1_000, -1, 1.0, -1, None)
    latents = [replace(first, index=index, windows=[long] * 30) for index in range(8)]
    payloads = written(tmp_path / "payloads", latents)
    assert len(payloads) > 1
    assert sum(len(payload["features"]) for payload in payloads) == 8
    assert all(file.stat().st_size < 4_100_000 for file in (tmp_path / "payloads").iterdir())
