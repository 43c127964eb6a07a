from __future__ import annotations

import gzip
import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from neuronpedia_exports import (
    BATCHES,
    HOOK,
    MODELS,
    RELEASE,
    SOURCE_ID,
    batch_features,
    export,
    rows,
    written_batches,
)

from sae_lens_crosscoder.dashboards.neuronpedia import ExportModel, ExportSource, export_neuronpedia, validate_export
from sae_lens_crosscoder.dashboards.neuronpedia.latents import read_latents
from sae_lens_crosscoder.dashboards.neuronpedia.rows_file import RowsWriter
from sae_lens_crosscoder.dashboards.neuronpedia.schema import NEURON
from sae_lens_crosscoder.errors import ConfigError, DataError, NotFoundError, SaveError

TABLES = [name for group in NEURON.parallel for name in group if not name.startswith("topk")]


def firing(feature: dict[str, Any]) -> list[dict[str, Any]]:
    return [activation for activation in feature["activations"] if max(activation["values"]) > 0]


def metadata(folder: Path, name: str) -> dict[str, Any]:
    (line,) = (folder / f"{name}.jsonl").read_text().splitlines()
    return json.loads(line)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("model", MODELS)
def test_rows_hold_what_the_batches_say(tmp_path: Path, model: str) -> None:
    export(tmp_path / "out")
    folder = tmp_path / "out" / "exports" / model / SOURCE_ID
    neurons, features = rows(folder / "features"), batch_features(model)
    assert len(neurons) == len(features) == 10
    for neuron, feature in zip(neurons, features, strict=True):
        assert {name: neuron[name] for name in TABLES} == {name: feature[name] for name in TABLES}
        assert neuron["index"] == str(feature["feature_index"])
        assert (neuron["vector"], neuron["hasVector"], neuron["hookName"]) == (feature["vector"], True, HOOK)
        assert neuron["frac_nonzero"] == feature["frac_nonzero"]
        assert (neuron["modelId"], neuron["layer"]) == (model, SOURCE_ID)
        assert neuron["sourceSetName"] == "crosscoder-res"
    windows = [(feature["feature_index"], window) for feature in features for window in firing(feature)]
    activations = rows(folder / "activations")
    assert len(activations) == len(windows) > 50
    for row, (index, window) in zip(activations, windows, strict=True):
        assert (row["tokens"], row["values"]) == (window["tokens"], window["values"])
        assert (row["modelId"], row["layer"], row["index"]) == (model, SOURCE_ID, str(index))
        assert row["maxValue"] == max(window["values"]) == row["values"][row["maxValueTokenIndex"]]
        assert row["minValue"] == min(window["values"])
        assert [row["binMin"], row["binMax"], row["binContains"]] == [
            window["bin_min"],
            window["bin_max"],
            window["bin_contains"],
        ]


def test_the_metadata_lead_from_the_source_to_its_set_release_and_model(tmp_path: Path) -> None:
    source = ExportSource(BATCHES / "tiny-chat", HOOK, ExportModel(3, 64, "someone", True), notes="the chat model")
    export_neuronpedia([source], tmp_path / "out", replace(RELEASE, urls=["https://example.org"]))
    folder = tmp_path / "out" / "exports" / "tiny-chat" / SOURCE_ID
    release, model = metadata(folder, "release"), metadata(folder, "model")
    source_set, row = metadata(folder, "sourceset"), metadata(folder, "source")
    assert (release["name"], release["urls"]) == ("tiny-crosscoder", ["https://example.org"])
    assert (model["id"], model["layers"], model["neuronsPerLayer"]) == ("tiny-chat", 3, 64)
    assert (model["owner"], model["instruct"]) == ("someone", True)
    assert (source_set["modelId"], source_set["name"], source_set["releaseName"]) == (
        "tiny-chat",
        "crosscoder-res",
        "tiny-crosscoder",
    )
    assert (row["id"], row["modelId"], row["setName"]) == (SOURCE_ID, "tiny-chat", "crosscoder-res")
    assert (row["dataset"], row["num_prompts"], row["num_tokens_in_prompt"]) == ("words", 24, 10)
    assert row["notes"] == "the chat model"


def test_both_models_have_the_same_latents_and_each_its_own_vectors_and_logits(tmp_path: Path) -> None:
    base, chat = export(tmp_path / "out")
    pairs = list(zip(rows(base.folder / "features"), rows(chat.folder / "features"), strict=True))
    assert all(a["index"] == b["index"] for a, b in pairs)
    assert all(a["vector"] != b["vector"] for a, b in pairs)
    assert all(a["pos_values"] != b["pos_values"] for a, b in pairs)


def test_a_dead_latent_is_a_row_without_activations_that_steers_with_neuronpedias_default(tmp_path: Path) -> None:
    source, _ = export(tmp_path / "out")
    dead, alive = rows(source.folder / "features")[3], rows(source.folder / "features")[0]
    assert (dead["maxActApprox"], dead["frac_nonzero"], dead["freq_hist_data_bar_values"]) == (0.0, 0, [])
    assert dead["vectorDefaultSteerStrength"] == 10.0
    assert alive["vectorDefaultSteerStrength"] == alive["maxActApprox"] == 3.373
    assert not [row for row in rows(source.folder / "activations") if row["index"] == "3"]
    assert (source.n_latents, source.n_dead) == (10, 1)
    n_windows = sum(len(feature["activations"]) for feature in batch_features("tiny-base"))
    assert source.n_windows + source.n_silent_windows == n_windows
    assert source.n_silent_windows >= 8


def test_ids_are_uuids_that_no_two_sources_share(tmp_path: Path) -> None:
    ids = [row["id"] for source in export(tmp_path / "out") for row in rows(source.folder / "activations")]
    assert len(ids) == len(set(ids)) > 100
    assert all(str(uuid.UUID(text)) == text for text in ids)


def test_an_export_that_is_made_twice_has_the_same_bytes(tmp_path: Path) -> None:
    export(tmp_path / "first")
    export(tmp_path / "second")
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")


def test_ids_change_with_what_they_stand_for(tmp_path: Path) -> None:
    features = batch_features("tiny-base")
    before = export_neuronpedia(
        [ExportSource(written_batches(tmp_path / "a", features), HOOK)], tmp_path / "1", RELEASE
    )
    features[0]["activations"][0]["values"][0] = 0.25
    after = export_neuronpedia([ExportSource(written_batches(tmp_path / "b", features), HOOK)], tmp_path / "2", RELEASE)
    old, new = ([row["id"] for row in rows(export[0].folder / "activations")] for export in (before, after))
    assert [a == b for a, b in zip(old, new, strict=True)] == [False] + [True] * (len(old) - 1)


def test_rows_are_split_into_files_of_1024(tmp_path: Path) -> None:
    with RowsWriter(tmp_path / "features") as writer:
        for index in range(2_049):
            writer.write({"index": str(index)})
    counts = [
        len(gzip.decompress(file.read_bytes()).splitlines()) for file in sorted((tmp_path / "features").iterdir())
    ]
    assert counts == [1_024, 1_024, 1]
    assert [int(row["index"]) for row in rows(tmp_path / "features")] == list(range(2_049))


def test_batches_are_read_one_at_a_time(tmp_path: Path) -> None:
    batches = written_batches(tmp_path / "batches", batch_features("tiny-base")[:3])
    (batches / "batch-1.json").write_text("{")
    latents = read_latents(batches)
    assert [next(latents).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match=r"batch-1\.json cannot be read"):
        next(latents)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vector": [float("nan")] * 16}, "latent 0 cannot be exported: vector with NaN"),
        ({"frac_nonzero": float("nan")}, "latent 0 cannot be exported: frac_nonzero with NaN"),
        ({"pos_str": ["a"]}, "latent 0 cannot be exported"),
        ({"activations": None}, "latent 0 cannot be exported"),
        ({"feature_index": -1}, "Neuronpedia would not take this export whole"),
        ({"frac_nonzero": 1.5}, "Neuronpedia would not take this export whole"),
    ],
)
def test_a_batch_that_neuronpedia_cannot_take_leaves_nothing_behind(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    features = batch_features("tiny-base")
    batches = written_batches(tmp_path / "batches", [{**features[0], **values}, *features[1:]])
    with pytest.raises(DataError, match=message):
        export_neuronpedia([ExportSource(batches, HOOK)], tmp_path / "out", RELEASE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["batches"]


def test_a_latent_that_stands_in_two_batches_is_found(tmp_path: Path) -> None:
    features = batch_features("tiny-base")
    batches = written_batches(tmp_path / "batches", [*features, features[2]])
    with pytest.raises(DataError, match="latent 2 cannot be exported: it stands in the batches twice"):
        export_neuronpedia([ExportSource(batches, HOOK)], tmp_path / "out", RELEASE)


def test_an_export_is_not_mixed_with_an_older_one(tmp_path: Path) -> None:
    export(tmp_path / "out")
    before = files_of(tmp_path / "out")
    with pytest.raises(ConfigError, match="holds an export already"):
        export(tmp_path / "out")
    assert files_of(tmp_path / "out") == before


def test_two_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    source = ExportSource(BATCHES / "tiny-base", HOOK)
    with pytest.raises(ConfigError, match="Two sources are named tiny-base/1-crosscoder-res"):
        export_neuronpedia([source, source], tmp_path / "out", RELEASE)
    with pytest.raises(ConfigError, match="no sources"):
        export_neuronpedia([], tmp_path / "out", RELEASE)


def test_a_suffix_tells_two_sources_of_one_model_apart_and_has_no_payloads(tmp_path: Path) -> None:
    features = batch_features("tiny-base")
    folders = [written_batches(tmp_path / name, features, sae_id_suffix=name) for name in ("base", "chat")]
    exported = export_neuronpedia([ExportSource(folder, HOOK) for folder in folders], tmp_path / "out", RELEASE)
    assert [source.folder.name for source in exported] == ["1-crosscoder-res__base", "1-crosscoder-res__chat"]
    assert [source.n_payloads for source in exported] == [0, 0]
    assert not (tmp_path / "out" / "payloads").exists()
    assert validate_export(tmp_path / "out") == []


def test_missing_batches_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no folder of batches"):
        export_neuronpedia([ExportSource(tmp_path / "none", HOOK)], tmp_path / "out", RELEASE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no batch-0\.json"):
        export_neuronpedia([ExportSource(tmp_path / "empty", HOOK)], tmp_path / "out", RELEASE)


def test_a_place_that_cannot_be_written_is_named_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="file"):
        export(tmp_path / "file" / "out")
