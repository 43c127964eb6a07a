"""The commands `neuronpedia`, `neuronpedia-validate` and `neuronpedia-upload`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from dashboard_subjects import crosscoder
from neuronpedia_exports import BATCHES, export, rows
from neuronpedia_server import KEY, running_server

from sae_lens_crosscoder import Source, Sources, cli
from sae_lens_crosscoder.dashboards.neuronpedia import SEEDED_CREATOR_ID, validate_export

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a crosscoder of the two models that the kept batches are of."""
    folder = tmp_path_factory.mktemp("saved") / "crosscoder"
    sources = Sources(tuple(Source(label, f"org/{label}", HOOK, 16) for label in ("tiny-base", "tiny-chat")))
    crosscoder("standard", sources).save_model(folder)
    return folder


def arguments(saved: Path, out: Path, *more: str) -> list[str]:
    release = ["--release", "tiny", "--creator-name", "Someone", "--batches", str(BATCHES)]
    return ["neuronpedia", str(saved), "--out", str(out), *release, *more]


def test_batches_become_an_export_that_validates_and_uploads(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    given = ["--creator-id", "me", "--url", "https://example.org", "--description", "A tiny one"]
    assert cli.main(arguments(saved, out, *given)) == 0
    assert "10 latents (1 dead), 75 windows, 1 payloads." in capsys.readouterr().out
    assert validate_export(out) == []
    folder = out / "exports" / "tiny-chat" / "1-crosscoder-res"
    release = json.loads((folder / "release.jsonl").read_text())
    assert (release["name"], release["description"], release["creatorId"]) == ("tiny", "A tiny one", "me")
    assert (release["creatorName"], release["urls"]) == ("Someone", ["https://example.org"])
    assert json.loads((folder / "model.jsonl").read_text())["owner"] == "org"
    assert rows(folder / "features")[0]["hookName"] == HOOK
    assert cli.main(["neuronpedia-validate", str(out)]) == 0
    assert "has no problems" in capsys.readouterr().out
    monkeypatch.setenv("MY_KEY", KEY)
    with running_server() as server:
        upload = ["neuronpedia-upload", str(out), "--api-key-env", "MY_KEY", "--base-url", server.url]
        assert cli.main(upload) == 0
        assert "2 payloads were uploaded: 18 latents in all." in capsys.readouterr().out
        assert cli.main(upload) == 0
        assert "0 payloads were uploaded, 2 had been before" in capsys.readouterr().out
        assert len(server.uploads) == 2


def test_the_seeded_creator_owns_rows_only_if_asked_for(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(saved, tmp_path / "none")) == 2
    assert "Who owns the rows?" in capsys.readouterr().err
    assert cli.main(arguments(saved, tmp_path / "both", "--creator-id", "me", "--seeded-creator")) == 2
    assert cli.main(arguments(saved, tmp_path / "out", "--seeded-creator")) == 0
    folder = tmp_path / "out" / "exports" / "tiny-base" / "1-crosscoder-res"
    assert {row["creatorId"] for row in rows(folder / "features")} == {SEEDED_CREATOR_ID}


def test_problems_are_listed_and_end_in_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(tmp_path / "out")
    (tmp_path / "out" / "exports" / "tiny-base" / "1-crosscoder-res" / "model.jsonl").unlink()
    assert cli.main(["neuronpedia-validate", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert "exports/tiny-base/1-crosscoder-res/model.jsonl: the file is missing" in printed.out
    assert "out: 2." in printed.err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model-id", "tiny-base"], "'tiny-base' is not of the form LABEL=VALUE"),
        (["--layer", "tiny-base=first"], "'first' is no number of a layer"),
        (["--source-set", "My_Set"], "'My_Set' is no name of a source set"),
        (["--model-id", "other=gpt2"], "no source 'other'"),
    ],
)
def test_bad_names_end_in_an_error(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert cli.main(arguments(saved, tmp_path / "out", "--seeded-creator", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_key_that_is_not_set_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    shutil.copytree(BATCHES, tmp_path / "folder")
    assert cli.main(["neuronpedia-upload", str(tmp_path / "folder"), "--api-key-env", "NO_KEY"]) == 2
    assert "environment variable NO_KEY is not set" in capsys.readouterr().err
