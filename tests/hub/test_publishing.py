from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from crosscoder_folders import HOOK, crosscoder_folder, make_crosscoder
from helpers import crosscoder
from hub_repositories import HubRepository
from hub_server import Fault, LocalHub
from huggingface_hub import HfApi
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig
from safetensors.torch import load_file, save_file

from sae_lens_crosscoder import Sources
from sae_lens_crosscoder.errors import ConfigError, CrosscoderError, DataError, HubError, NotFoundError, SourceError
from sae_lens_crosscoder.hub import BundleOptions, PublishOptions, fetch, publish_crosscoder

REPO = "alice/diff"

# After a break the client of version 0.36 leaves its socket to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "default:unclosed <socket:ResourceWarning", "default::pytest.PytestUnraisableExceptionWarning"
)
IN_SAELENS_LAYOUT = ("cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "runner_cfg.json")


def own_files(repository: HubRepository, id: str, revision: str = "main") -> dict[str, bytes]:
    files = repository.files(revision)
    return {path.removeprefix(f"{id}/"): content for path, content in files.items() if path.startswith(f"{id}/")}


# ------------------------------------------------------------ what arrives


def test_what_is_published_comes_back_bit_for_bit(hub: LocalHub, folder: Path) -> None:
    publish_crosscoder(folder, REPO, "first")
    fetched = fetch(REPO, "first")
    for name in ("sae_weights.safetensors", "sparsity.safetensors"):
        assert (fetched / name).read_bytes() == (folder / name).read_bytes()
    saved, loaded = SAE.load_from_disk(folder), SAE.load_from_disk(fetched)
    x = torch.randn(50, 16) * 4
    assert torch.equal(loaded.encode(x), saved.encode(x))
    assert torch.equal(loaded(x), saved(x))
    assert Sources.from_metadata(loaded.cfg.metadata) == Sources.from_metadata(saved.cfg.metadata)


def test_all_files_of_a_crosscoder_and_the_card_are_one_commit(hub: LocalHub, folder: Path) -> None:
    done = publish_crosscoder(folder, REPO)
    repository = hub.repositories[REPO]
    assert repository.titles == ["initial commit", f"Publish crosscoder {HOOK}"]
    assert done.commit == repository.branches["main"]
    published = own_files(repository, HOOK)
    expected = {*IN_SAELENS_LAYOUT, "metrics.json", "training_curve.csv", "report.html", "manifest.json"}
    assert set(published) == expected | {"latents.parquet", "latents.csv", "decoder.png"}
    assert {name: len(content) for name, content in published.items()} == done.sizes_bytes
    assert repository.files()["README.md"].decode() == done.card


STOCK = """
import sys
sys.modules["sae_lens_crosscoder"] = None  # importing it raises ImportError
import torch
torch.set_num_threads(1)
from safetensors.torch import load_file, save_file
from sae_lens import SAE, upload_saes_to_huggingface

sae = SAE.from_pretrained("alice/diff", "first")
codes = sae.encode(load_file("x.safetensors")["x"])
save_file({"codes": codes, "reconstructions": sae.decode(codes)}, "stock.safetensors")
assert sae.cfg.metadata.sources[1]["label"] == "chat"
assert not any(name.startswith("sae_lens_crosscoder.") for name in sys.modules)
upload_saes_to_huggingface({"first": sys.argv[1]}, "alice/theirs", show_progress=False)
"""


def test_stock_saelens_loads_it_where_this_package_cannot_be_imported_and_has_the_same_layout(
    hub: LocalHub, folder: Path, tmp_path: Path
) -> None:
    publish_crosscoder(folder, REPO, "first")
    x = torch.randn(50, 16) * 4
    save_file({"x": x}, tmp_path / "x.safetensors")
    hub_of_tests = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(folder)],
        cwd=tmp_path,
        env={**environment, **hub_of_tests},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    theirs, ours = load_file(tmp_path / "stock.safetensors"), SAE.load_from_disk(folder)
    assert torch.equal(theirs["codes"], ours.encode(x))
    assert torch.equal(theirs["reconstructions"], ours(x))
    by_saelens, by_us = (own_files(hub.repositories[name], "first") for name in ("alice/theirs", REPO))
    assert set(by_saelens) == set(IN_SAELENS_LAYOUT) <= set(by_us)
    assert by_us["sae_weights.safetensors"] == by_saelens["sae_weights.safetensors"]


def test_the_evaluations_of_a_run_are_published_and_lines_end_as_they_did(hub: LocalHub, folder: Path) -> None:
    (folder / "evaluations.csv").write_bytes(b"step,l0\r\n10,100\r\n")
    done = publish_crosscoder(folder, REPO, "first")
    assert own_files(hub.repositories[REPO], "first")["evaluations.csv"] == b"step,l0\r\n10,100\r\n"
    assert "evaluations.csv" not in done.left_out


def test_a_card_that_is_no_text_stops_publishing_and_stays(hub: LocalHub, folder: Path) -> None:
    repository = hub.add(REPO, {"README.md": "# Für mich".encode("latin-1")})
    with pytest.raises(DataError, match="no UTF-8 text"):
        publish_crosscoder(folder, REPO, "first")
    assert set(repository.files()) == {".gitattributes", "README.md"}


def test_a_crosscoder_in_memory_is_published_without_a_run(hub: LocalHub) -> None:
    sae = make_crosscoder()
    publish_crosscoder(sae, REPO, "memory")
    loaded = SAE.from_pretrained(REPO, "memory")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), sae.parameters(), strict=True))
    assert set(own_files(hub.repositories[REPO], "memory")) == {"cfg.json", "sae_weights.safetensors", "manifest.json"}


def test_the_report_may_lie_in_a_folder_of_its_own(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "diff").mkdir()
    (tmp_path / "diff" / "report.html").write_text("<html>of the diff</html>")
    publish_crosscoder(folder, REPO, "first", PublishOptions(contents=BundleOptions(report_folder=tmp_path / "diff")))
    published = own_files(hub.repositories[REPO], "first")
    assert published["report.html"] == b"<html>of the diff</html>"
    assert "latents.csv" not in published


def test_a_report_that_is_asked_for_and_not_there_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    options = PublishOptions(contents=BundleOptions(report_folder=tmp_path / "empty"))
    with pytest.raises(NotFoundError, match=r"empty holds nothing that `diff` writes"):
        publish_crosscoder(folder, REPO, options=options, dry_run=True)
    (folder / "report.html").unlink()
    with pytest.raises(NotFoundError, match=r"There is no report.html in .* to publish: run `diff` first"):
        publish_crosscoder(folder, REPO, options=PublishOptions(contents=BundleOptions(with_report=True)), dry_run=True)
    publish_crosscoder(folder, REPO, dry_run=True)


# ------------------------------------------------------------ dry run


def test_a_dry_run_asks_nothing_of_the_hub_and_changes_no_file(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    planned = publish_crosscoder(folder, REPO, "first", dry_run=True)
    assert hub.requests == []
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before
    assert planned.commit is None
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    done = publish_crosscoder(folder, REPO, "first")
    assert (planned.sizes_bytes, planned.card, planned.left_out) == (done.sizes_bytes, done.card, done.left_out)


# ------------------------------------------------------------ several, again, elsewhere


def test_crosscoders_share_a_repository_and_its_card(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    publish_crosscoder(folder, REPO, "first")
    repository = hub.repositories[REPO]
    first = own_files(repository, "first")
    publish_crosscoder(crosscoder_folder(tmp_path / "second", seed=1), REPO, "nested/second")
    assert own_files(repository, "first") == first
    card = repository.files()["README.md"].decode()
    assert card.count("<!-- crosscoder: ") == 2
    assert card.count("library_name: saelens") == 1
    for id, seed in (("first", 0), ("nested/second", 1)):
        assert torch.equal(SAE.from_pretrained(REPO, id).W_dec, make_crosscoder(seed).W_dec)


def test_publishing_the_same_again_makes_no_commit(hub: LocalHub, folder: Path) -> None:
    first = publish_crosscoder(folder, REPO, "first")
    again = publish_crosscoder(folder, REPO, "first")
    assert again.commit is None
    assert hub.repositories[REPO].branches["main"] == first.commit


def test_another_crosscoder_of_the_same_id_is_only_replaced_on_demand(
    hub: LocalHub, folder: Path, tmp_path: Path
) -> None:
    publish_crosscoder(folder, REPO, "first")
    repository = hub.repositories[REPO]
    before = repository.files()
    other = crosscoder_folder(tmp_path / "other", seed=1)
    (other / "report.html").unlink()
    with pytest.raises(ConfigError, match="another crosscoder called first"):
        publish_crosscoder(other, REPO, "first")
    assert repository.files() == before
    publish_crosscoder(other, REPO, "first", PublishOptions(replace=True))
    assert torch.equal(SAE.from_pretrained(REPO, "first").W_dec, make_crosscoder(1).W_dec)
    assert "report.html" not in own_files(repository, "first")


@pytest.mark.parametrize("content", ["{", '{"manifest_version": 1, "files": {"cfg.json": 3}}'])
def test_a_manifest_on_the_hub_that_says_nothing_is_that_of_another_crosscoder(
    hub: LocalHub, folder: Path, content: str
) -> None:
    publish_crosscoder(folder, REPO, "first")
    HfApi().upload_file(path_or_fileobj=content.encode(), path_in_repo="first/manifest.json", repo_id=REPO)
    with pytest.raises(ConfigError, match="another crosscoder called first"):
        publish_crosscoder(folder, REPO, "first")
    publish_crosscoder(folder, REPO, "first", PublishOptions(replace=True))
    assert fetch(REPO, "first").is_dir()


def test_files_that_are_not_ours_survive_a_replacement(hub: LocalHub, folder: Path, tmp_path: Path) -> None:
    publish_crosscoder(folder, REPO, "first")
    repository = hub.repositories[REPO]
    publish_crosscoder(folder, REPO, "first/inner")
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="first/notes.txt", repo_id=REPO)
    publish_crosscoder(crosscoder_folder(tmp_path / "other", seed=1), REPO, "first", PublishOptions(replace=True))
    files = repository.files()
    assert files["first/notes.txt"] == b"mine"
    assert "first/inner/sae_weights.safetensors" in files


def test_a_commit_of_somebody_else_in_between_is_kept(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.add(REPO)
    original = HfApi.create_commit

    def late(api: HfApi, *arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(HfApi, "create_commit", original)
        api.upload_file(path_or_fileobj=b"# By hand", path_in_repo="README.md", repo_id=REPO)
        return original(api, *arguments, **options)

    monkeypatch.setattr(HfApi, "create_commit", late)
    publish_crosscoder(folder, REPO, "first")
    card = repository.files()["README.md"].decode()
    assert "# By hand" in card
    assert "<!-- crosscoder: first -->" in card


def test_commits_of_others_each_time_are_told_after_three_tries(hub: LocalHub, folder: Path) -> None:
    hub.faults = [Fault(STAGES["commit"], 412)]
    with pytest.raises(HubError, match="somebody else changed alice/diff meanwhile"):
        publish_crosscoder(folder, REPO, "first")
    assert sum("/commit/" in line for line in hub.requests) == 3
    assert own_files(hub.repositories[REPO], "first") == {}


def test_a_branch_is_made_and_main_stays_as_it_is(hub: LocalHub, folder: Path) -> None:
    done = publish_crosscoder(folder, REPO, "first", PublishOptions(revision="draft"))
    repository = hub.repositories[REPO]
    assert own_files(repository, "first") == {}
    assert "sae_weights.safetensors" in own_files(repository, "first", "draft")
    assert 'load_crosscoder("alice/diff", "first", revision="draft")' in done.card
    assert SAE.load_from_disk(fetch(REPO, "first", "draft")).cfg.d_in == 16
    publish_crosscoder(folder, REPO, "second", PublishOptions(revision="draft"))
    assert own_files(repository, "first", "draft")


# ------------------------------------------------------------ private


def test_a_private_repository_is_seen_by_its_owner_only(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_crosscoder(folder, REPO, "first", PublishOptions(private=True))
    assert hub.repositories[REPO].private
    assert fetch(REPO, "first").is_dir()
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    with pytest.raises(NotFoundError, match="or it is private"):
        fetch(REPO, "first")


def test_what_is_to_be_private_does_not_go_into_a_public_repository(hub: LocalHub, folder: Path) -> None:
    repository = hub.add(REPO)
    with pytest.raises(ConfigError, match="is a public repository"):
        publish_crosscoder(folder, REPO, "first", PublishOptions(private=True))
    assert own_files(repository, "first") == {}
    assert hub.uploaded_bytes == 0


# ------------------------------------------------------------ refused before anything is sent


def test_without_a_login_nothing_is_asked(hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="hf auth login"):
        publish_crosscoder(folder, REPO, "first")
    assert hub.requests == []


def _without_weights(folder: Path) -> None:
    (folder / "sae_weights.safetensors").unlink()


def _with_nan(folder: Path) -> None:
    weights = load_file(folder / "sae_weights.safetensors")
    weights["W_dec"][3, 4] = torch.nan
    save_file(weights, folder / "sae_weights.safetensors")


def _cut_short(folder: Path) -> None:
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _without_sources(folder: Path) -> None:
    cfg = json.loads((folder / "cfg.json").read_text())
    del cfg["metadata"]["sources"]
    (folder / "cfg.json").write_text(json.dumps(cfg))


def _with_the_sparsity_of_another(folder: Path) -> None:
    save_file({"dead_latents": torch.zeros(3)}, folder / "sparsity.safetensors")


def _with_a_broken_sparsity(folder: Path) -> None:
    (folder / "sparsity.safetensors").write_bytes(b"x" * 30)


def _with_a_list_for_configuration(folder: Path) -> None:
    (folder / "runner_cfg.json").write_text("[]")


def _with_a_list_for_metrics(folder: Path) -> None:
    (folder / "metrics.json").write_text("[]")


def _with_a_name_for_datasets(folder: Path) -> None:
    (folder / "runner_cfg.json").write_text('{"datasets": ["pile"]}')


def _with_a_report_in_latin_1(folder: Path) -> None:
    (folder / "report.html").write_bytes("<p>é</p>".encode("latin-1"))


def _in_training_form(folder: Path) -> None:
    crosscoder("batchtopk").save_model(folder)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (_without_weights, NotFoundError, "no sae_weights"),
        (_with_nan, DataError, "W_dec .* not a number"),
        (_cut_short, DataError, "cannot be read"),
        (_without_sources, SourceError, "no 'sources'"),
        (_in_training_form, DataError, "cannot be read|training form"),
        (_with_the_sparsity_of_another, DataError, "is of 3 latents, but the crosscoder has 24"),
        (_with_a_broken_sparsity, DataError, r"sparsity.safetensors cannot be read"),
        (_with_a_list_for_configuration, ConfigError, "no mapping of fields"),
        (_with_a_list_for_metrics, ConfigError, "no mapping of fields"),
        (_with_a_name_for_datasets, ConfigError, "no list of mappings"),
        (_with_a_report_in_latin_1, DataError, r"report.html is no UTF-8 text"),
    ],
)
def test_a_folder_that_would_not_load_is_not_published(
    hub: LocalHub, folder: Path, damage: Any, error: type[CrosscoderError], message: str
) -> None:
    damage(folder)
    with pytest.raises(error, match=message):
        publish_crosscoder(folder, REPO, "first")
    assert hub.requests == []


def test_an_sae_in_training_or_without_sources_is_not_published(hub: LocalHub) -> None:
    with pytest.raises(ConfigError, match="training form"):
        publish_crosscoder(crosscoder(), REPO, "first")
    with pytest.raises(SourceError, match="no 'sources'"):
        publish_crosscoder(JumpReLUSAE(JumpReLUSAEConfig(d_in=4, d_sae=8, device="cpu")), REPO, "first")
    assert hub.requests == []


# ------------------------------------------------------------ faults

STAGES = {
    "preupload": r"POST .*/preupload/",
    "batch": r"POST .*/objects/batch",
    "upload": r"PUT /storage/",
    "verify": r"POST .*/verify",
    "commit": r"POST .*/commit/",
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("status", [None, 500])
def test_an_upload_that_breaks_leaves_nothing_and_the_next_one_goes_on(
    hub: LocalHub, folder: Path, stage: str, status: int | None
) -> None:
    hub.faults = [Fault(STAGES[stage], status, after_bytes=100)]
    with pytest.raises(HubError, match="halves"):
        publish_crosscoder(folder, REPO, "first")
    assert set(hub.repositories[REPO].files()) == {".gitattributes"}
    with pytest.raises(NotFoundError, match="no crosscoder"):
        fetch(REPO, "first")
    hub.faults, received = [], hub.uploaded_bytes
    publish_crosscoder(folder, REPO, "first")
    large = {"sae_weights.safetensors", "sparsity.safetensors", "latents.parquet", "decoder.png"}
    published = own_files(hub.repositories[REPO], "first")
    assert hub.uploaded_bytes == sum(len(published[name]) for name in large)
    # Files go at once in several threads: where one of them breaks, others may not have been sent.
    assert (received > 0) == (stage in ("verify", "commit"))
    assert received == hub.uploaded_bytes or stage != "commit"
    assert torch.equal(SAE.from_pretrained(REPO, "first").W_dec, make_crosscoder(0).W_dec)


def test_an_upload_that_fails_for_a_moment_is_tried_again_by_itself(hub: LocalHub, folder: Path) -> None:
    hub.faults = [Fault(STAGES["upload"], 500, times=2), Fault(STAGES["upload"], None, after_bytes=50, times=1)]
    publish_crosscoder(folder, REPO, "first")
    assert hub.faults[1].times == 0
    assert torch.equal(SAE.from_pretrained(REPO, "first").W_dec, make_crosscoder(0).W_dec)


def test_a_commit_whose_answer_was_lost_is_found_done_by_the_next_call(hub: LocalHub, folder: Path) -> None:
    hub.faults = [Fault(STAGES["commit"], None, after_effect=True)]
    with pytest.raises(HubError, match="connection"):
        publish_crosscoder(folder, REPO, "first")
    hub.faults = []
    assert publish_crosscoder(folder, REPO, "first").commit is None
    assert len(hub.repositories[REPO].titles) == 2


REFUSALS = {
    401: "does not accept the login|this login does not see it",
    403: "may not write to alice/diff",
    404: "no repository|answered 404",
    429: "too many requests",
    500: "out of order",
    503: "out of order",
}


@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.parametrize("stage", ["GET /api/models", "repos/create", "preupload", "commit"])
def test_every_refusal_says_what_it_is_and_publishes_nothing(
    hub: LocalHub, folder: Path, stage: str, status: int
) -> None:
    hub.faults = [Fault(STAGES.get(stage, stage), status, message="for a test")]
    with pytest.raises((HubError, NotFoundError), match=REFUSALS[status]) as caught:
        publish_crosscoder(folder, REPO, "first")
    assert "hf_writer" not in str(caught.value)
    assert all(own_files(repository, "first") == {} for repository in hub.repositories.values())


def test_a_login_without_the_right_to_write_is_told_so(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    with pytest.raises(HubError, match="may not write to alice/diff"):
        publish_crosscoder(folder, REPO, "first")


def test_a_login_that_the_hub_does_not_know_is_told_so(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_revoked")
    with pytest.raises(HubError, match=r"does not accept the login.*hf auth login"):
        publish_crosscoder(folder, REPO, "first")
