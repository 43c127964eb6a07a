"""From a crosscoder over sae-dashboard's batches to an export, and what names its models get."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dashboard_subjects import DEAD, SECOND_ONLY, latent_activations, needs_sae_dashboard, subject
from neuronpedia_exports import BATCHES, RELEASE, rows

from sae_lens_crosscoder import Source, Sources
from sae_lens_crosscoder.dashboards import DashboardConfig
from sae_lens_crosscoder.dashboards.neuronpedia import ExportModel, export_neuronpedia, validate_export
from sae_lens_crosscoder.dashboards.neuronpedia.crosscoder import export_sources, source_names
from sae_lens_crosscoder.errors import ConfigError


def pair(model_name: str = "google/Gemma-2-2b", hook_name: str = "model.layers.12") -> Sources:
    base = Source("base", model_name, hook_name, d_in=16)
    return Sources((base, Source("chat", "google/gemma-2-2b-it", "blocks.13.hook_resid_post", d_in=16)))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, list[Any]]:
    """A crosscoder of two models of unequal width, its batches by sae-dashboard, and their export."""
    from sae_lens_crosscoder.dashboards import write_batches
    from sae_lens_crosscoder.dashboards.batches import BatchNames

    folder = tmp_path_factory.mktemp("chain")
    made = subject(widths=(16, 24))
    named = source_names(made.joint.sources, "crosscoder-res", {"base": "tiny-base", "chat": "tiny-chat"}, {})
    names = {label: BatchNames(name.model_id, name.source_set, name.layer) for label, name in named.items()}
    config = DashboardConfig(n_latents_per_page=10)
    batches = write_batches(made, list(range(24)), folder / "batches", names, config)
    sources = export_sources(made.joint.sources, batches, made.joint)
    return made, folder, export_neuronpedia(sources, folder / "out", RELEASE)


@needs_sae_dashboard
def test_every_model_becomes_a_source_with_its_slice_of_the_decoder(chain: Any) -> None:
    made, folder, exported = chain
    assert validate_export(folder / "out") == []
    assert [source.folder.relative_to(folder / "out" / "exports") for source in exported] == [
        Path("tiny-base/1-crosscoder-res"),
        Path("tiny-chat/1-crosscoder-res"),
    ]
    for label, written in zip(("base", "chat"), exported, strict=True):
        decoder = made.sae.W_dec[:, made.joint.sources.columns(label)].detach()
        neurons = rows(written.folder / "features")
        assert [neuron["index"] for neuron in neurons] == [str(index) for index in range(24)]
        for neuron in neurons:
            expected = decoder[int(neuron["index"])].tolist()
            assert neuron["vector"] == (expected if any(expected) else [])
            assert neuron["hookName"] == "blocks.1.hook_resid_pre"


@needs_sae_dashboard
def test_a_latent_without_a_decoder_row_in_a_model_has_no_vector_there(chain: Any) -> None:
    base, chat = (rows(source.folder / "features")[SECOND_ONLY] for source in chain[2])
    assert (base["hasVector"], base["vector"], chat["hasVector"], len(chat["vector"])) == (False, [], True, 24)


@needs_sae_dashboard
def test_the_activations_are_those_of_the_models(chain: Any) -> None:
    made, _, exported = chain
    largest = latent_activations(made)[:, 1:].amax((0, 1)).tolist()
    for source in exported:
        for neuron in rows(source.folder / "features"):
            assert neuron["maxActApprox"] == pytest.approx(largest[int(neuron["index"])], abs=6e-4)
        assert not [row for row in rows(source.folder / "activations") if row["index"] == str(DEAD)]
        assert source.n_dead == sum(value == 0 for value in largest) >= 1


@needs_sae_dashboard
@pytest.mark.parametrize("folder", [BATCHES / "tiny-base", BATCHES / "tiny-chat", None])
def test_batches_load_in_sae_dashboard_and_come_out_unchanged(chain: Any, folder: Path | None) -> None:
    from sae_dashboard.neuronpedia.neuronpedia_converter import NpEncoder
    from sae_dashboard.neuronpedia.neuronpedia_dashboard import NeuronpediaDashboardBatch

    files = list((folder or chain[1] / "batches").rglob("batch-*.json"))
    assert len(files) == (2 if folder else 6)
    for file in files:
        text = file.read_text()
        assert json.dumps(NeuronpediaDashboardBatch(**json.loads(text)), cls=NpEncoder) == text


def test_models_are_named_by_the_last_part_of_their_name_and_the_layer_of_their_hook() -> None:
    names = source_names(pair(), "crosscoder", {}, {})
    assert {label: (name.model_id, name.source_id) for label, name in names.items()} == {
        "base": ("gemma-2-2b", "12-crosscoder"),
        "chat": ("gemma-2-2b-it", "13-crosscoder"),
    }
    named = source_names(pair(), "crosscoder-16k", {"base": "gemma2"}, {"chat": 3})
    assert (named["base"].model_id, named["chat"].source_id) == ("gemma2", "3-crosscoder-16k")


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, ("Crosscoder", {}, {}), "Neuronpedia would refuse this source: 'Crosscoder' is no name of a source set"),
        ({}, ("crosscoder", {"basis": "a"}, {}), "no source 'basis'. The sources are 'base', 'chat'"),
        ({}, ("crosscoder", {}, {"basis": 1}), "no source 'basis'"),
        ({"hook_name": "hook_embed"}, ("crosscoder", {}, {}), "does not name one layer.*--layer base=N"),
        (
            {"model_name": "x/gemma-2-2b-it"},
            ("crosscoder", {}, {"base": 13}),
            "Two sources would be 'gemma-2-2b-it' at layer 13",
        ),
        ({}, ("crosscoder", {"base": "Gemma 2"}, {}), "'Gemma 2' is no model id"),
    ],
)
def test_names_that_neuronpedia_refuses_are_found_before_any_work(
    changes: dict[str, Any], arguments: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        source_names(pair(**changes), *arguments)


def test_of_several_models_those_that_are_one_are_named() -> None:
    third = Source("rl", "google/gemma-2-2b-it", "blocks.13.hook_resid_post", d_in=16)
    with pytest.raises(ConfigError, match="Two sources would be 'gemma-2-2b-it'"):
        source_names(Sources((*pair(), third)), "crosscoder", {}, {})


def test_what_is_known_of_the_models_goes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = subject()
    folders = {"base": tmp_path / "a", "chat": tmp_path / "b"}
    base, chat = export_sources(made.joint.sources, folders, made.joint)
    assert (base.batches, base.hook_name) == (tmp_path / "a", "blocks.1.hook_resid_pre")
    assert base.model == ExportModel(n_layers=3, n_neurons_per_layer=32, owner="custom")
    assert chat.notes is not None
    assert "Source 'chat' of a crosscoder of base and chat" in chat.notes
    wrapped = SimpleNamespace(
        model=SimpleNamespace(config=SimpleNamespace(num_hidden_layers=26, intermediate_size=9216))
    )
    monkeypatch.setattr(made.joint, "source_models", (wrapped, wrapped))
    hugging_face, _ = export_sources(made.joint.sources, folders, made.joint)
    assert hugging_face.model == ExportModel(n_layers=26, n_neurons_per_layer=9216, owner="custom")
    unloaded, _ = export_sources(pair(), folders, None)
    assert unloaded.model == ExportModel(n_layers=0, n_neurons_per_layer=0, owner="google")
