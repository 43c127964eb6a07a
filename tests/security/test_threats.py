"""Threats of docs/security.md that have no test beside the module which meets them."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import pkgutil
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import batchtopk_config, run_config, source, standard_config, tiny_pair, token_dataset

import sae_lens_crosscoder
from sae_lens_crosscoder import CrosscoderTrainingRunner, JointModel, Sources
from sae_lens_crosscoder.errors import ConfigError, CrosscoderError, SourceError
from sae_lens_crosscoder.fields import read_config_file
from sae_lens_crosscoder.manifest import check_manifest, write_manifest
from sae_lens_crosscoder.sources import TRUST_VARIABLE
from sae_lens_crosscoder.training.saved_run import SavedRun

PACKAGE = Path(sae_lens_crosscoder.__file__).parent
SECRET = "hf_" + "Ab1" * 10


class RunsCode:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


# ------------------------------------------------------------------------------------------------------ code


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [(ast.unparse(call.func), call) for call in found]


def arguments(call: ast.Call) -> dict[str | None, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_runs_what_it_reads(path: Path) -> None:
    for name, call in calls(path):
        given = arguments(call)
        assert name not in {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}, (name, call.lineno)
        assert not re.fullmatch(r"(pickle|cPickle|dill|joblib|marshal|shelve)\.\w+", name), (name, call.lineno)
        assert not re.fullmatch(r"np\.load|numpy\.load", name) or given.get("allow_pickle", "False") == "False"
        if name == "torch.load":
            assert given.get("weights_only") == "True", call.lineno
        if name == "yaml.load":
            assert ast.unparse(call.args[1]) == "_TupleLoader", call.lineno  # a SafeLoader
        if name.startswith("subprocess."):
            assert "shell" not in given, call.lineno
            assert isinstance(call.args[0], ast.List), call.lineno
        assert "trust_remote_code" not in given, call.lineno


def test_a_trainers_state_that_would_run_code_runs_nothing(tmp_path: Path) -> None:
    cfg = run_config(standard_config(), tmp_path, n_checkpoints=1)
    CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair()).run()
    (checkpoint,) = tmp_path.glob("checkpoints/*/*")
    ran = tmp_path / "ran"
    torch.save({"optimizer": RunsCode(ran)}, checkpoint / "trainer_state.pt")
    write_manifest(checkpoint, run="")
    again = run_config(
        standard_config(), tmp_path, resume_from_checkpoint=str(checkpoint), output_path=str(tmp_path / "other")
    )
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        CrosscoderTrainingRunner(again, token_dataset(), tiny_pair()).run()
    assert not ran.exists()


def with_remote_code() -> Sources:
    pair = [source("base"), source("chat", model_from_pretrained_kwargs={"trust_remote_code": True})]
    return Sources(tuple(pair))


def test_a_file_cannot_have_the_code_of_a_model_run(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = with_remote_code().to_metadata()  # as a user's own configuration may say
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    with pytest.raises(SourceError, match=rf"wants code from 'tiny-chat' to be run.*set {TRUST_VARIABLE}=1"):
        Sources.from_metadata(metadata)
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    assert Sources.from_metadata(metadata) == with_remote_code()


def test_neither_can_the_configuration_of_a_run_that_was_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    CrosscoderTrainingRunner(run_config(batchtopk_config(), tmp_path), token_dataset(), tiny_pair()).run()
    file = tmp_path / "output" / "runner_cfg.json"
    values = json.loads(file.read_text())
    values["sources"][0]["model_from_pretrained_kwargs"] = {"trust_remote_code": True}
    file.write_text(json.dumps(values))
    with pytest.raises(SourceError, match=TRUST_VARIABLE):
        SavedRun(tmp_path / "output").config()


def test_models_are_loaded_without_their_code_unless_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    def loading(_class: str, _name: str, _device: str, kwargs: dict[str, Any], **_: Any) -> Any:
        seen.append(kwargs)
        raise OSError("no such model")

    monkeypatch.setattr("sae_lens_crosscoder.hooked_models.load_model", loading)
    for sources in (Sources((source("base"), source("chat"))), Sources(tuple(reversed(with_remote_code().sources)))):
        with pytest.raises(CrosscoderError):
            JointModel.from_pretrained(sources)
    assert [kwargs.get("trust_remote_code", False) for kwargs in seen] == [False, True]


# ---------------------------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    "kwargs", [{"token": "abc"}, {"use_auth_token": "x"}, {"api_key": "k"}, {"proxies": {"https": f"u:{SECRET}@h"}}]
)
def test_a_token_among_a_models_arguments_is_refused_and_not_repeated(kwargs: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match=r"has an access token or a password among.*hf auth login") as refused:
        source("base", model_from_pretrained_kwargs=kwargs)
    assert SECRET not in str(refused.value)
    source("base", model_from_pretrained_kwargs={"token": True})


@pytest.mark.parametrize(
    "fields",
    [
        {"dataset_path": f"https://user:{SECRET}@host/data"},
        {"dataset_path": "", "datasets": [{"path": "json", "data_files": f"https://h/x?token={SECRET}"}]},
    ],
)
def test_a_token_in_a_configuration_is_refused_and_not_repeated(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"looks like an access token") as refused:
        run_config(standard_config(), **fields)
    assert SECRET not in str(refused.value)


ADDRESS = f"https://alice:{SECRET[3:]}@host/data"


def test_an_address_with_a_password_is_refused_and_not_repeated() -> None:
    listed: list[dict[str, Any]] = [
        {"dataset_path": ADDRESS},
        {"dataset_path": "", "datasets": [{"path": "json", "data_files": ADDRESS}]},
    ]
    for fields in listed:
        with pytest.raises(ConfigError, match=r"holds an address with a password.*fetch files") as refused:
            run_config(standard_config(), **fields)
        assert SECRET[3:] not in str(refused.value)
    with pytest.raises(SourceError, match="or a password among") as refused:
        source("base", model_from_pretrained_kwargs={"proxies": {"https": ADDRESS}})
    assert SECRET[3:] not in str(refused.value)


@pytest.mark.parametrize(
    "path",
    ["hf://datasets/alice/chats@main/a.jsonl", "https://host:8080/data@v2/a.jsonl", "s3://bucket/a:b@c", "a:b@c"],
)
def test_addresses_without_a_password_are_taken(path: str) -> None:
    assert run_config(standard_config(), dataset_path=path).dataset_path == path


def test_the_login_of_this_machine_stands_in_no_file_and_in_no_message_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "NEURONPEDIA_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    cfg = run_config(batchtopk_config(), tmp_path, n_checkpoints=1)
    CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair()).run()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert SECRET not in json.dumps(cfg.to_dict()) + caplog.text + "".join(capfd.readouterr())


# ------------------------------------------------------------------------------------------- hostile text, sizes


def patterns() -> list[tuple[re.Pattern[str], bool]]:
    """All compiled patterns, and whether their module looks for them anywhere in a text."""
    found: dict[str, tuple[re.Pattern[str], bool]] = {}
    for module in pkgutil.walk_packages(sae_lens_crosscoder.__path__, "sae_lens_crosscoder."):
        if "_sae_dashboard" in module.name or module.name.endswith(("__main__", "neuronpedia.schema")):
            continue  # sae-dashboard need not be there; the schema reads its own text
        try:
            loaded = importlib.import_module(module.name)
        except ImportError:  # parts that need a package which is not installed
            continue
        for name, value in vars(loaded).items():
            if isinstance(value, re.Pattern):
                is_sought = re.search(rf"\b{name}\.(search|sub|findall|finditer|split)\(", inspect.getsource(loaded))
                found[value.pattern] = (value, is_sought is not None)
    return list(found.values())


def test_no_pattern_takes_long_on_hostile_text() -> None:
    assert len(patterns()) > 10
    assert 2 < sum(is_sought for _, is_sought in patterns()) < len(patterns())
    pieces = ["a", "a.", "-", "a-", " ", "\\", "/", "a/", "hf_", "<", "&", "[", "](", "_", "0", "\n", "|", "`", "{"]
    for pattern, is_sought in patterns():
        for piece in pieces:
            text = piece * (20_000 // len(piece)) + "\0"
            begun = time.process_time()
            for match in (pattern.match, pattern.fullmatch, *([pattern.search] if is_sought else [])):
                match(text)
            assert time.process_time() - begun < 2, (pattern, piece)


def test_yaml_that_makes_objects_runs_nothing(tmp_path: Path) -> None:
    file, ran = tmp_path / "run.yaml", tmp_path / "ran"
    file.write_text(f"a: !!python/object/apply:os.mkdir ['{ran}']\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config_file(file)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside"])
def test_a_manifest_leads_to_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "outside").write_text("mine")
    write_manifest(folder)
    values = json.loads((folder / "manifest.json").read_text())
    values["files"] = {name: {"bytes": 4, "sha256": "0" * 64}}
    (folder / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(CrosscoderError, match="is no file of the folder"):
        check_manifest(folder)


@pytest.mark.parametrize("label", ["../up", "a/b", "", ".hidden", "a\0b", "<b>"])
def test_a_label_cannot_lead_a_files_name_elsewhere(label: str) -> None:
    with pytest.raises(SourceError, match="cannot name files"):
        source(label)
