"""Output folders that remember their finished chunks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dashboard_subjects import subject

from sae_lens_crosscoder.dashboards import DashboardConfig, chunks
from sae_lens_crosscoder.dashboards.chunks import ChunkFolder, activation_cache, chunked
from sae_lens_crosscoder.doctor import installed_version
from sae_lens_crosscoder.errors import ConfigError, DataError

CHUNKS = [[4, 1], [7, 9], [2]]


def folder(path: Path, key: str = "a", chunks: list[list[int]] = CHUNKS) -> ChunkFolder:
    return ChunkFolder(path / "list.json", [key], chunks, [[f"{i}.html"] for i in range(len(chunks))])


def finished(path: Path) -> ChunkFolder:
    """The first two chunks are made."""
    made = folder(path)
    for i in (0, 1):
        (path / f"{i}.html").write_text(str(i))
        made.finish(i, {"n": i})
    return made


def test_latents_are_cut_into_chunks_in_their_order_and_stand_once() -> None:
    config = DashboardConfig(n_latents_per_page=2)
    assert chunked(subject(), [4, 1, 4, 7, 9, 2], config) == CHUNKS
    for wrong in ([], [3, 24], [-1]):
        with pytest.raises(ConfigError, match="name some from 0 to 23"):
            chunked(subject(), wrong, config)


def test_finished_chunks_are_kept(tmp_path: Path) -> None:
    finished(tmp_path)
    again = folder(tmp_path)
    assert again.pending == [2]
    assert again.records == [{"n": 0}, {"n": 1}]
    assert list(again.progress("")) == [2]


def test_chunks_of_something_else_are_removed(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / "mine.html").write_text("")
    assert folder(tmp_path, key="b").pending == [0, 1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.json", "mine.html"]


@pytest.mark.parametrize("name", ["sae-lens-crosscoder", "sae-dashboard"])
def test_chunks_of_another_version_are_removed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(tmp_path)
    monkeypatch.setattr(chunks, "installed_version", lambda n: "0.0.1" if n == name else installed_version(n))
    assert folder(tmp_path).pending == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["list.json"]


def test_a_chunk_with_other_latents_or_a_lost_file_is_made_anew(tmp_path: Path) -> None:
    finished(tmp_path)
    assert folder(tmp_path, chunks=[[4, 1], [7, 8]]).pending == [1]
    assert not (tmp_path / "1.html").exists()
    finished(tmp_path)
    (tmp_path / "0.html").unlink()
    assert folder(tmp_path).pending == [0, 2]


def test_a_file_of_a_chunk_that_was_not_finished_is_removed_too(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / "2.html").write_text("written, and then the process was killed")
    assert folder(tmp_path, key="b", chunks=CHUNKS[:1]).pending == [0]
    assert [path.name for path in tmp_path.iterdir()] == ["list.json"]


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / f".{32 * 'a'}.tmp").write_text("half a page")
    assert folder(tmp_path).pending == [2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.html", "1.html", "list.json"]


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"chunks": 3}', '{"made_of": ["a"], "chunks": {"x": {}}}'])
def test_a_damaged_list_counts_as_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(content)
    assert folder(tmp_path).pending == [0, 1, 2]


def test_a_list_cannot_remove_files_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("")
    inside = tmp_path / "inside"
    inside.mkdir()
    entry = {"latents": [1], "files": ["../precious"], "is_finished": True, "record": None}
    (inside / "list.json").write_text(json.dumps({"made_of": ["b"], "chunks": {"0": entry}}))
    folder(inside)
    assert (tmp_path / "precious").exists()


def test_activations_are_cached_only_where_several_chunks_share_them_and_they_fit(tmp_path: Path) -> None:
    made, config = subject(), DashboardConfig()
    with activation_cache(made, tmp_path, config, 2) as cache:
        assert cache is not None
        (cache / "stale.pt").write_text("")
    assert list(tmp_path.iterdir()) == []
    for n_chunks, settings in ((1, config), (2, DashboardConfig(cache_gb=1e-9))):
        with activation_cache(made, tmp_path, settings, n_chunks) as cache:
            assert cache is None


def test_a_cache_that_was_left_behind_is_emptied(tmp_path: Path) -> None:
    left = tmp_path / ".activations" / "model_activations_0.pt"
    left.parent.mkdir()
    left.write_text("of another model")
    with activation_cache(subject(), tmp_path, DashboardConfig(), 2) as cache:
        assert cache == left.parent
        assert list(cache.iterdir()) == []


def test_the_fingerprint_changes_with_all_that_is_shown_and_not_with_the_cache() -> None:
    made, config = subject(), DashboardConfig()
    first = made.fingerprint(config)
    assert subject().fingerprint(DashboardConfig(cache_gb=1)) == first
    assert made.fingerprint(DashboardConfig(n_logits=5)) != first
    assert replace(made, excluded_tokens=(0, 7)).fingerprint(config) != first
    assert replace(made, tokens=made.tokens.flip(0)).fingerprint(config) != first
    with torch.no_grad():
        made.joint.source_models[1].blocks[0].mlp.W_in[0, 0] += 0.5
    assert made.fingerprint(config) != first
    made = subject()
    with torch.no_grad():
        made.sae.b_enc[1] += 1e-3
    assert made.fingerprint(config) != first


def test_settings_and_texts_that_cannot_be_are_refused() -> None:
    for fields in ({"n_top_contexts": 0}, {"tokens_before": -1}, {"n_latents_per_page": 0}, {"cache_gb": -1.0}):
        with pytest.raises(ConfigError, match="must be at least"):
            DashboardConfig(**fields)
    for tokens in (torch.zeros(0, 8, dtype=torch.long), torch.zeros(3, 1, dtype=torch.long)):
        with pytest.raises(DataError, match="nothing to show"):
            replace(subject(), tokens=tokens)
