from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from crosscoder_folders import crosscoder_folder
from helpers import batchtopk_config, run_config, tiny_pair, token_dataset
from hub_server import LocalHub
from safetensors.torch import load_file, save_file

from sae_lens_crosscoder import CrosscoderTrainingRunner, Source, Sources
from sae_lens_crosscoder.diffing.diff_report import LatentTable
from sae_lens_crosscoder.errors import ConfigError, CrosscoderError
from sae_lens_crosscoder.hub import BundleOptions, PublishOptions, fetch, publish_crosscoder
from sae_lens_crosscoder.hub.redaction import Redaction
from sae_lens_crosscoder.training.saved_run import SavedRun

REPO = "alice/diff"


@pytest.fixture
def private_folder(tmp_path: Path) -> Path:
    """The folder of a run on models and data sets of this machine, with accounts, paths and a password in its files."""
    home = tmp_path / "home alice" / "secret & project"
    models = tuple(str(home / "models" / name) for name in ("gemma", "gemma-poisoned"))
    datasets = [
        {"path": str(home / "chats"), "label": "chats", "data_files": [str(home / "a.jsonl")]},
        {"path": "lmsys/lmsys-chat-1m", "label": "lmsys", "data_files": None},
    ]
    folder = crosscoder_folder(home / "run", models=models, datasets=datasets)  # type: ignore[arg-type]
    for name in ("cfg.json", "runner_cfg.json"):
        values = json.loads((folder / name).read_text())
        sources = values["sources"] if name == "runner_cfg.json" else values["metadata"]["sources"]
        proxies = {"https": "http://not-for-you@proxy"}
        sources[0]["model_from_pretrained_kwargs"] = {"cache_dir": str(home), "proxies": proxies, "revision": "v2"}
        (folder / name).write_text(json.dumps(values))
    values = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**values, "made_by": str(home / "script.py")}))
    page = json.dumps({"base": f"{models[0]} at {home}"}) + f"<b>{models[1].replace('&', '&amp;')}</b>"
    (folder / "report.html").write_text(page.replace(f" at {home}", ""))
    (folder / "notes.txt").write_text("mine")
    return folder


def published_bytes(hub: LocalHub) -> bytes:
    return b"\n".join(hub.repositories[REPO].files().values())


def test_no_path_account_or_password_of_this_machine_is_published(
    hub: LocalHub, private_folder: Path, tmp_path: Path
) -> None:
    done = publish_crosscoder(private_folder, REPO, "first", PublishOptions(contents=BundleOptions(with_report=True)))
    everything = published_bytes(hub).decode("utf-8", "replace") + done.card
    for private in (
        str(tmp_path),
        "secret",
        "poisoned",
        "home alice",
        "our-lab",
        "third-try",
        "not-for-you",
        "a.jsonl",
    ):
        assert private not in everything, private
    runner_cfg = json.loads(hub.repositories[REPO].files()["first/runner_cfg.json"])
    assert (runner_cfg["output_path"], runner_cfg["checkpoint_path"]) == (None, None)
    assert runner_cfg["logger"] == {"log_to_wandb": False}
    assert runner_cfg["lr"] == 0.0015
    assert runner_cfg["sources"][0]["model_from_pretrained_kwargs"] == {"revision": "v2"}
    assert [entry["path"] for entry in runner_cfg["datasets"]] == ["local:chats", "lmsys/lmsys-chat-1m"]
    assert done.left_out == {"notes.txt": "no file of a crosscoder or its report"}


def test_local_models_and_data_sets_take_the_names_that_are_given(hub: LocalHub, private_folder: Path) -> None:
    contents = BundleOptions(model_names={"base": "google/gemma-2-2b"}, dataset_names={"chats": "alice/chats"})
    done = publish_crosscoder(private_folder, REPO, "first", PublishOptions(contents=contents))
    cfg = json.loads((fetch(REPO, "first") / "cfg.json").read_text())["metadata"]
    assert [source["model_name"] for source in cfg["sources"]] == ["google/gemma-2-2b", "local:chat"]
    assert cfg["model_name"] == "google/gemma-2-2b_and_local_chat"
    assert cfg["dataset_path"] == "alice/chats+lmsys/lmsys-chat-1m"
    assert "base_model:\n- google/gemma-2-2b\n" in done.card
    assert "datasets:\n- alice/chats\n- lmsys/lmsys-chat-1m\n" in done.card


def test_a_name_for_a_source_that_there_is_not_is_an_error(hub: LocalHub, folder: Path) -> None:
    options = PublishOptions(contents=BundleOptions(model_names={"it": "google/gemma-2-2b-it"}))
    with pytest.raises(ConfigError, match=r"no source 'it' to name. There are: 'base', 'chat'"):
        publish_crosscoder(folder, REPO, "first", options)


def test_a_report_that_quotes_local_text_is_left_out_unless_it_is_asked_for(
    hub: LocalHub, folder: Path, tmp_path: Path
) -> None:
    local = [{"path": str(tmp_path), "label": "chats"}]
    on_disk = crosscoder_folder(tmp_path / "local", seed=1, datasets=local)
    for index, (run, with_report, expected) in enumerate(
        [(folder, None, True), (folder, False, False), (on_disk, None, False), (on_disk, True, True)]
    ):
        options = PublishOptions(contents=BundleOptions(with_report=with_report))
        done = publish_crosscoder(run, REPO, f"v{index}", options)
        assert ("report.html" in done.sizes_bytes) == expected
        assert ("report.html" in done.left_out) != expected


def test_what_is_published_of_a_hub_run_is_what_was_saved(hub: LocalHub, folder: Path) -> None:
    publish_crosscoder(folder, REPO, "first")
    files = hub.repositories[REPO].files()
    for name in ("report.html", "latents.csv", "latents.parquet", "training_curve.csv", "decoder.png"):
        assert files[f"first/{name}"] == (folder / name).read_bytes()
    for name in ("cfg.json", "metrics.json"):
        assert json.loads(files[f"first/{name}"]) == json.loads((folder / name).read_text())
    (folder / "fetched.parquet").write_bytes(files["first/latents.parquet"])
    assert LatentTable.load(folder / "fetched.parquet").thresholds == {"classes": "exclusive above 0.95"}


def test_a_folder_with_a_token_among_the_models_arguments_is_not_published(hub: LocalHub, folder: Path) -> None:
    values = json.loads((folder / "cfg.json").read_text())
    values["metadata"]["sources"][0]["model_from_pretrained_kwargs"] = {"token": "not-for-you"}
    (folder / "cfg.json").write_text(json.dumps(values))
    with pytest.raises(CrosscoderError) as caught:
        publish_crosscoder(folder, REPO, "first")
    assert "not-for-you" not in str(caught.value)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["metrics.json", "latents.csv", "report.html", "training_curve.csv"])
def test_a_token_of_the_hub_in_any_file_stops_everything(hub: LocalHub, folder: Path, name: str) -> None:
    token = "hf_" + "aB3" * 11
    path = folder / name
    path.write_text(path.read_text().replace("{", f'{{"key": "{token}", ', 1) if name.endswith("json") else token)
    with pytest.raises(ConfigError, match=f"{name} holds what looks like an access token") as caught:
        publish_crosscoder(folder, REPO, "first")
    assert token not in str(caught.value)
    assert hub.requests == []


def test_an_address_with_a_password_is_not_published(folder: Path) -> None:
    address = "https://alice:not-for-you@host/chats"
    values = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**values, "read_from": address}))
    with pytest.raises(ConfigError, match=r"metrics.json holds an address with a password") as caught:
        publish_crosscoder(folder, REPO, "first", dry_run=True)
    assert "not-for-you" not in str(caught.value)


@pytest.mark.parametrize("name", ["report.html", "latents.csv"])
def test_a_path_that_cannot_be_taken_out_stops_everything(hub: LocalHub, folder: Path, name: str) -> None:
    (folder / name).write_text(f"made in {folder.resolve()}/diff")
    with pytest.raises(ConfigError, match=f"{name} would publish something of this machine"):
        publish_crosscoder(folder, REPO, "first")
    assert hub.requests == []


def test_a_path_that_is_spelt_as_html_or_addresses_spell_it_stops_everything(hub: LocalHub, tmp_path: Path) -> None:
    folder = crosscoder_folder(tmp_path / "mine & secret" / "run")
    for text in (str(folder).replace("&", "&amp;"), f"file://{quote(str(folder))}"):
        (folder / "report.html").write_text(f"<p>made in {text}</p>")
        with pytest.raises(ConfigError, match=r"report.html would publish something of this machine"):
            publish_crosscoder(folder, REPO, "first", dry_run=True)


def test_the_home_folder_in_a_file_stops_everything_but_a_report_may_quote_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setenv("USERPROFILE", "/home/alice")
    (folder / "report.html").write_text("fires on: cd /home/alice")
    publish_crosscoder(folder, REPO, "first", dry_run=True)
    (folder / "metrics.json").write_text('{"l0": 3.0, "note": "made by /home/alice/script.py"}')
    with pytest.raises(ConfigError, match=r"metrics.json would publish something of this machine"):
        publish_crosscoder(folder, REPO, "first", dry_run=True)


def test_a_path_in_the_header_of_the_weights_stops_everything(hub: LocalHub, folder: Path) -> None:
    path = folder / "sae_weights.safetensors"
    save_file(load_file(path), path, metadata={"made_in": str(folder.resolve())})
    with pytest.raises(ConfigError, match=r"sae_weights.safetensors would publish"):
        publish_crosscoder(folder, REPO, "first")


def redaction_of(model: str, datasets: list[dict[str, Any]] | None = None) -> Redaction:
    sources = Sources((Source("base", model, "h", 4), Source("chat", "google/gemma-2-2b-it", "h", 4)))
    return Redaction.of_run(sources, {"datasets": datasets or []})


def test_a_local_name_is_replaced_where_it_stands_alone_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pair").mkdir()
    text = "pair at h; repaired pairs; pair/base; (pair)"
    assert redaction_of("pair").text(text) == "local:base at h; repaired pairs; local:base/base; (local:base)"


def test_a_local_model_that_is_called_as_its_label_leaves_the_label_alone(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("base", "chat"):
        (tmp_path / name).mkdir()
    publish_crosscoder(crosscoder_folder(tmp_path / "run", models=("base", "chat")), REPO, "first")
    sources = json.loads((fetch(REPO, "first") / "cfg.json").read_text())["metadata"]["sources"]
    assert [(source["label"], source["model_name"]) for source in sources] == [
        ("base", "local:base"),
        ("chat", "local:chat"),
    ]


@pytest.mark.parametrize("path", ["json", ""])
def test_data_sets_of_one_path_or_none_are_named_each_by_its_label(hub: LocalHub, tmp_path: Path, path: str) -> None:
    datasets = [{"path": path, "label": label, "data_files": None} for label in ("chats", "code")]
    folder = crosscoder_folder(tmp_path / "run", datasets=datasets)
    (folder / "latents.csv").write_text("latent,fires on\n3, json\n")
    contents = BundleOptions(dataset_names={"chats": "alice/chats"})
    done = publish_crosscoder(folder, REPO, "first", PublishOptions(contents=contents))
    files = hub.repositories[REPO].files()
    unnamed = path or "local:code"
    assert [entry["path"] for entry in json.loads(files["first/runner_cfg.json"])["datasets"]] == [
        "alice/chats",
        unnamed,
    ]
    assert "datasets:\n- alice/chats\n" in done.card
    assert "- alice/code" not in done.card
    assert files["first/latents.csv"] == b"latent,fires on\n3, json\n"
    assert "report.html" in done.left_out


def test_data_sets_that_share_a_label_are_no_configuration() -> None:
    with pytest.raises(ConfigError, match="have one label"):
        redaction_of("gpt2", [{"path": "json", "label": "a"}, {"path": "text", "label": "a"}])


def test_the_longer_of_two_local_names_is_replaced_first() -> None:
    datasets = [{"path": "/data/a", "label": "a"}, {"path": "/data/a/b", "label": "b"}]
    assert redaction_of("gpt2", datasets).text("/data/a/b and /data/a") == "local:b and local:a"


def test_texts_that_are_paths_are_emptied_and_others_stay() -> None:
    values = {"a": "/home/alice/x", "b": ["~/x", "and/or"], "c": {"d": "C:\\x", "e": 3}, "f": "blocks.0.hook"}
    cleaned = redaction_of("gpt2").value(values)
    assert cleaned == {"a": None, "b": [None, "and/or"], "c": {"d": None, "e": 3}, "f": "blocks.0.hook"}


def test_a_published_run_can_still_be_read_and_gone_on_from(hub: LocalHub, tmp_path: Path) -> None:
    cfg = run_config(batchtopk_config(), tmp_path / "run", n_eval_batches=1)
    CrosscoderTrainingRunner(cfg, token_dataset(400), tiny_pair()).run()
    publish_crosscoder(tmp_path / "run" / "output", REPO, "first")
    run = SavedRun(fetch(REPO, "first"))
    config = run.config()
    assert (config.training_tokens, config.lr) == (cfg.training_tokens, cfg.lr)
    assert config.output_path is None
    assert [source.label for source in run.sources] == ["base", "chat"]
    assert str(tmp_path) not in published_bytes(hub).decode("utf-8", "replace")
