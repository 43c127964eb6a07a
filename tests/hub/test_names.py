from __future__ import annotations

from pathlib import Path

import pytest

from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.hub.names import checked_id, checked_repo_id, is_local
from sae_lens_crosscoder.hub.repository import fetch


@pytest.mark.parametrize(
    "id",
    [
        "..",
        "../other",
        "a/../../b",
        "/etc",
        "a//b",
        "a/",
        ".hidden",
        "a/.git",
        "a\\b",
        "C:\\x",
        "a\nb",
        "a b",
        "",
        "ä",
        "-x",
    ],
)
def test_an_id_that_could_leave_the_repository_or_hide_in_it_is_refused(id: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the id"):
        checked_id(id)
    with pytest.raises(ConfigError, match="cannot be the id"):
        fetch("alice/diff", id)


@pytest.mark.parametrize("id", ["blocks.13.hook_resid_post", "v1/k=100", "a-b_c+d", "2024"])
def test_ids_as_people_write_them_are_taken(id: str) -> None:
    assert checked_id(id) == id


@pytest.mark.parametrize(
    "name", ["diff", "a/b/c", "../diff", "/alice/diff", "alice/..", "alice/di ff", "https://x/y", ""]
)
def test_a_repository_is_named_as_owner_and_name(name: str) -> None:
    with pytest.raises(ConfigError, match="owner/name"):
        checked_repo_id(name)


@pytest.mark.parametrize(
    "name", ["/models/gemma", "~/gemma", "./gemma", "..", "C:\\gemma", "runs\\gemma", "out/pair/base"]
)
def test_paths_are_local(name: str) -> None:
    assert is_local(name)


def test_a_folder_that_is_here_is_local_and_names_of_the_hub_and_of_transformerlens_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_local("google/gemma-2-2b")
    assert not is_local("gpt2")
    (tmp_path / "gpt2").mkdir()
    assert is_local("gpt2")
