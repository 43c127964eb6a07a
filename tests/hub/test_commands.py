from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from crosscoder_folders import HOOK, crosscoder_folder, make_crosscoder
from hub_server import Fault, LocalHub
from sae_lens import SAE

from sae_lens_crosscoder import cli

REPO = "alice/diff"

# After a break the client of version 0.36 leaves its socket to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "default:unclosed <socket:ResourceWarning", "default::pytest.PytestUnraisableExceptionWarning"
)
Printed = pytest.CaptureFixture[str]


def test_publish_and_load_from_the_command_line(hub: LocalHub, folder: Path, tmp_path: Path, capsys: Printed) -> None:
    assert cli.main(["publish", str(folder), REPO, "--license", "gemma", "--private"]) == 0
    printed = capsys.readouterr().out
    assert f"Published {HOOK} in {REPO}, commit {hub.repositories[REPO].branches['main']}." in printed
    assert f"{HOOK}/sae_weights.safetensors" in printed
    assert hub.repositories[REPO].private
    assert cli.main(["publish", str(folder), REPO]) == 0
    assert "was published already" in capsys.readouterr().out
    out = tmp_path / "loaded"
    assert cli.main(["load", REPO, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "jumprelu, 24 latents over 2 sources" in printed
    assert f"chat  google/gemma-2-2b-it at {HOOK}, width 8, activation scale 0.25" in printed
    assert torch.equal(SAE.load_from_disk(out).W_dec, make_crosscoder().W_dec)


def test_a_dry_run_prints_files_and_card_and_sends_nothing(hub: LocalHub, folder: Path, capsys: Printed) -> None:
    (folder / "notes.txt").write_text("mine")
    assert cli.main(["publish", str(folder), REPO, "--id", "v1", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert hub.requests == []
    for text in ("v1/manifest.json", "notes.txt: no file of a crosscoder", "library_name: saelens", "nothing was sent"):
        assert text in printed, text


def test_names_of_local_models_and_data_sets_are_given_by_label(hub: LocalHub, tmp_path: Path) -> None:
    local = (str(tmp_path / "gemma"), str(tmp_path / "poisoned"))
    run = crosscoder_folder(tmp_path / "run", models=local, datasets=[{"path": str(tmp_path), "label": "chats"}])
    named = ["--model-name", "base=google/gemma-2-2b", "--dataset-name", "chats=alice/chats"]
    assert cli.main(["publish", str(run), REPO, "--id", "v1", "--no-with-report", *named]) == 0
    files = hub.repositories[REPO].files()
    assert "v1/report.html" not in files
    runner_cfg = json.loads(files["v1/runner_cfg.json"])
    assert [source["model_name"] for source in runner_cfg["sources"]] == ["google/gemma-2-2b", "local:chat"]
    assert runner_cfg["datasets"][0]["path"] == "alice/chats"


def test_convert_writes_what_stock_saelens_loads(hub: LocalHub, folder: Path, tmp_path: Path, capsys: Printed) -> None:
    out = tmp_path / "converted"
    assert cli.main(["convert", str(folder), str(out), "--format", "saelens"]) == 0
    assert f"Saved to {out}." in capsys.readouterr().out
    assert torch.equal(SAE.load_from_disk(out).W_enc, make_crosscoder().W_enc)
    assert hub.requests == []


def test_the_known_crosscoders_are_listed(capsys: Printed) -> None:
    assert cli.main(["load", "--known"]) == 0
    printed = capsys.readouterr().out
    assert "kissane-gemma-2-2b-l14\n" in printed
    assert "ckkissane/crosscoder-gemma-2-2b-model-diff, id blocks.14.hook_resid_pre; licence not known" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["load"], "Say what to load"),
        (["load", REPO], "no repository alice/diff"),
        (["load", REPO, "--scales", "1;2"], "numbers with commas"),
        (["load", "FOLDER", "--scales", "1,2"], "no effect"),
        (["publish", "FOLDER", "nowhere"], "owner/name"),
        (["publish", "FOLDER", REPO, "--model-name", "base"], "LABEL=VALUE"),
        (["publish", "FOLDER/none", REPO], "no crosscoder at"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    hub: LocalHub, folder: Path, capsys: Printed, arguments: list[str], message: str
) -> None:
    assert cli.main([argument.replace("FOLDER", str(folder)) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_broken_upload_is_exit_code_2_and_the_next_call_goes_on(hub: LocalHub, folder: Path, capsys: Printed) -> None:
    hub.faults = [Fault("PUT /storage/", None, after_bytes=10)]
    assert cli.main(["publish", str(folder), REPO]) == 2
    assert "call again" in capsys.readouterr().err
    hub.faults = []
    assert cli.main(["publish", str(folder), REPO]) == 0
