from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from crosscoder_folders import crosscoder_folder
from hub_repositories import Blob
from hub_server import Fault, LocalHub
from huggingface_hub import constants
from huggingface_hub.utils import _http

from sae_lens_crosscoder.errors import ConfigError, DataError, HubError, NotFoundError, SaveError
from sae_lens_crosscoder.hub import fetch, publish_crosscoder
from sae_lens_crosscoder.hub.repository import crosscoder_ids

REPO = "alice/diff"

# After a break the client of version 0.36 leaves its socket to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "default:unclosed <socket:ResourceWarning", "default::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def published(hub: LocalHub, folder: Path, tmp_path: Path) -> LocalHub:
    """A Hub with two crosscoders in one repository; what was sent for it is not counted."""
    publish_crosscoder(folder, REPO, "first")
    publish_crosscoder(crosscoder_folder(tmp_path / "second", seed=1), REPO, "inner/second")
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
    hub.requests.clear()
    return hub


def new_sessions() -> None:
    """Version 0.36 looks at HF_HUB_OFFLINE when it makes a session, and keeps that; later ones look at each request."""
    getattr(_http, "reset_sessions", lambda: None)()


def fetched_paths(hub: LocalHub) -> set[str]:
    """Paths in the repository whose content was asked for."""
    return {line.split("/", 5)[5] for line in hub.requests if line.startswith(f"HEAD /{REPO}/resolve/")}


def test_only_the_files_that_a_crosscoder_needs_are_fetched(published: LocalHub) -> None:
    found = fetch(REPO, "inner/second")
    needed = {"cfg.json", "runner_cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "manifest.json"}
    assert fetched_paths(published) == {f"inner/second/{name}" for name in needed}
    assert {path.name for path in found.iterdir()} == needed


def test_the_crosscoders_of_other_systems_are_told_apart_by_their_files() -> None:
    paths = [
        *("README.md", ".gitattributes", "blocks.14.hook_resid_pre/cfg.json", "blocks.14.hook_resid_pre/cc_weights.pt"),
        *("small.pt", "small_cfg.json", "large.pt", "large_cfg.json"),
        *("run/config.json", "run/model_final.pt", "run/checkpoint_100.pt", "run/trainer_config.json"),
        *("crosscode/model.pt", "crosscode/model_cfg.yaml", "only_weights/model.pt", "only_config/config.json"),
        *("split/model.safetensors.index.json", "split/model-00001-of-00002.safetensors"),
        *("../escaped/cfg.json", "../escaped/cc_weights.pt", "/etc/cfg.json", "/etc/weights.pt", ".git/config.json"),
    ]
    assert crosscoder_ids(paths) == {
        "large": ["large_cfg.json", "large.pt"],
        "small": ["small_cfg.json", "small.pt"],
        "blocks.14.hook_resid_pre": ["blocks.14.hook_resid_pre/cfg.json", "blocks.14.hook_resid_pre/cc_weights.pt"],
        "crosscode": ["crosscode/model_cfg.yaml", "crosscode/model.pt"],
        "run": ["run/config.json", "run/trainer_config.json", "run/model_final.pt"],
    }


def test_a_pair_is_given_as_its_weights_file(hub: LocalHub) -> None:
    hub.add(REPO, {"a.pt": b"weights of a", "a_cfg.json": b"{}", "b.pt": b"weights of b", "b_cfg.json": b"{}"})
    found = fetch(REPO, "b")
    assert found.name == "b.pt"
    assert found.read_bytes() == b"weights of b"
    assert {path.name for path in found.parent.iterdir()} == {"b.pt", "b_cfg.json"}


def test_a_crosscoder_in_the_root_needs_no_id(hub: LocalHub) -> None:
    hub.add(REPO, {"config.json": b"{}", "model.pt": b"weights", "old/config.json": b"{}", "old/model.pt": b"old"})
    assert (fetch(REPO) / "model.pt").read_bytes() == b"weights"
    assert (fetch(REPO, "old") / "model.pt").read_bytes() == b"old"


# ------------------------------------------------------------ what is not there


def test_of_several_crosscoders_one_has_to_be_named(published: LocalHub) -> None:
    with pytest.raises(ConfigError, match="'first', 'inner/second'"):
        fetch(REPO)


def test_a_wrong_id_is_answered_with_those_that_there_are(published: LocalHub) -> None:
    with pytest.raises(NotFoundError, match=r"no crosscoder 'frist' .* It has: 'first', 'inner/second'.*mean 'first'"):
        fetch(REPO, "frist")


def test_an_unknown_revision_is_answered_with_the_branches(published: LocalHub) -> None:
    published.repositories[REPO].branch("draft", "main")
    with pytest.raises(NotFoundError, match=r"no revision 'drafts'. Its branches are: draft, main"):
        fetch(REPO, "first", "drafts")


def test_a_repository_without_crosscoders_says_so(hub: LocalHub) -> None:
    hub.add(REPO, {"notes.txt": b""})
    with pytest.raises(NotFoundError, match="no crosscoder in alice/diff"):
        fetch(REPO)


@pytest.mark.parametrize("token", ["hf_writer", None])
def test_a_repository_that_is_not_there_is_told_with_and_without_a_login(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(NotFoundError, match="no repository alice/nothing, or it is private"):
        fetch("alice/nothing")


# ------------------------------------------------------------ revisions


def test_a_commit_is_fetched_as_it_was(published: LocalHub, tmp_path: Path) -> None:
    repository = published.repositories[REPO]
    before, commit = repository.files()["first/sae_weights.safetensors"], repository.branches["main"]
    weights = Blob(b"changed", True)
    repository.commits["f" * 40] = {**repository.tree("main"), "first/sae_weights.safetensors": weights}
    repository.branches["main"] = "f" * 40
    assert (fetch(REPO, "first", commit) / "sae_weights.safetensors").read_bytes() == before


def test_files_of_two_commits_are_never_mixed(published: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = published.repositories[REPO]
    old = repository.branches["main"]
    answers = published.fault

    def moves(line: str) -> Fault | None:
        # Between the listing and the first file somebody publishes: main moves to another commit.
        if line.startswith("HEAD ") and repository.branches["main"] == old:
            repository.commits["e" * 40] = dict(repository.tree("main"))
            repository.branches["main"] = "e" * 40
        return answers(line)

    monkeypatch.setattr(published, "fault", moves)
    found = fetch(REPO, "first")
    assert "e" * 40 in found.parts
    assert {path.name for path in found.iterdir()} >= {"cfg.json", "sae_weights.safetensors", "manifest.json"}


# ------------------------------------------------------------ refusals and breaks

REFUSALS = {
    401: "does not accept the login|this login does not see it",
    403: "may not read alice/diff",
    404: "no repository|answered 404|not in alice/diff",
    429: "too many requests",
    500: "out of order",
}


@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.parametrize("asked", ["GET /api/models", "(HEAD|GET) /alice/diff/resolve", "GET /cdn"])
def test_every_refusal_says_what_it_is(published: LocalHub, asked: str, status: int) -> None:
    published.faults = [Fault(asked, status, message="for a test")]
    with pytest.raises((HubError, NotFoundError), match=REFUSALS[status]) as caught:
        fetch(REPO, "first")
    assert "hf_writer" not in str(caught.value)


@pytest.mark.parametrize("asked", ["GET /api/models", "(HEAD|GET) /alice/diff/resolve", "GET /cdn"])
def test_a_connection_that_breaks_is_told_and_the_next_call_completes_it(
    published: LocalHub, folder: Path, asked: str
) -> None:
    published.faults = [Fault(asked, None, after_bytes=50)]
    with pytest.raises(HubError, match="connection to the Hub broke"):
        fetch(REPO, "first")
    published.faults = []
    found = fetch(REPO, "first")
    weights = "sae_weights.safetensors"
    assert (found / weights).read_bytes() == (folder / weights).read_bytes()


def test_without_a_connection_what_was_fetched_before_is_given(
    published: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fetch(REPO, "first")
    commit = published.repositories[REPO].branches["main"]
    published.faults = [Fault("", None)]
    assert fetch(REPO, "first") == before
    assert fetch(REPO, "first", commit) == before
    with pytest.raises(NotFoundError, match=r"of what was fetched before|It has: 'first'"):
        fetch(REPO, "inner/second")
    with pytest.raises(HubError, match="connection"):
        fetch("alice/other", "first")


def test_a_cache_that_cannot_be_written_to_is_told(
    published: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(SaveError, match=r"Not a directory: .*choose another folder by HF_HOME"):
        fetch(REPO, "first")


def test_a_hub_that_is_switched_off_is_told_and_the_cache_still_serves(
    published: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fetch(REPO, "first")
    published.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    new_sessions()
    assert fetch(REPO, "first") == before
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        fetch("alice/other")
    assert published.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    new_sessions()


# ------------------------------------------------------------ damage


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors", "runner_cfg.json"])
def test_a_file_that_is_not_what_was_published_is_found(published: LocalHub, name: str) -> None:
    tree = published.repositories[REPO].tree("main")
    blob = tree[f"first/{name}"]
    content = bytearray(blob.content)
    content[len(content) // 2] ^= 1
    tree[f"first/{name}"] = Blob(bytes(content), blob.is_large)
    with pytest.raises(
        DataError, match=rf"first in alice/diff is not what its manifest lists.* {name} has other contents"
    ):
        fetch(REPO, "first")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"manifest_version": 1, "files": {"cfg.json": 3}}',
        b'{"manifest_version": 2, "files": {}}',
        b"\xff",
    ],
)
def test_a_manifest_that_cannot_be_read_is_no_permission(published: LocalHub, content: bytes) -> None:
    published.repositories[REPO].tree("main")["first/manifest.json"] = Blob(content, False)
    with pytest.raises(DataError, match="first in alice/diff is not what its manifest lists"):
        fetch(REPO, "first")
