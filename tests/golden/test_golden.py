"""What any released version of this package wrote is read by this one, and means what it meant."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from golden.make import HOOK, N_STEPS, SOURCES, documents, models
from safetensors.torch import load_file

from sae_lens_crosscoder import CrosscoderRunnerConfig, CrosscoderTrainingRunner, load_crosscoder
from sae_lens_crosscoder.activations import CacheReader
from sae_lens_crosscoder.diffing.diff_report import LatentTable
from sae_lens_crosscoder.fields import read_config_file
from sae_lens_crosscoder.training.checkpoints import check_checkpoint, is_finished, newest_whole_checkpoint
from sae_lens_crosscoder.training.parent import load_parent, load_training_sae
from sae_lens_crosscoder.training.saved_run import SavedRun

pytestmark = pytest.mark.filterwarnings("ignore:The data set ended")
VERSIONS = sorted(path.parent.name for path in Path(__file__).parent.glob("*/expected.safetensors"))


@pytest.fixture(params=VERSIONS)
def golden(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what a version wrote, in which the paths of its run are right."""
    folder = tmp_path / request.param
    shutil.copytree(Path(__file__).parent / request.param, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def expected(golden: Path) -> dict[str, torch.Tensor]:
    return load_file(golden / "expected.safetensors")


def configuration(folder: Path, **fields: object) -> CrosscoderRunnerConfig:
    return CrosscoderRunnerConfig.from_dict({**read_config_file(folder / "runner_cfg.json"), **fields})


def assert_close(value: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(value.detach(), other, rtol=1e-6, atol=1e-6)


def test_there_is_a_golden_folder_of_the_first_release() -> None:
    assert "0.1.0" in VERSIONS


def test_a_finished_crosscoder_gives_the_codes_and_reconstructions_that_it_gave(
    golden: Path, expected: dict[str, torch.Tensor]
) -> None:
    run = SavedRun(golden / "crosscoder")
    assert_close(run.sae.encode(expected["inputs"]), expected["codes"])
    assert_close(run.sae(expected["inputs"]), expected["reconstructions"])
    assert run.sources.unscaled() == SOURCES
    assert run.dead is not None
    assert run.config().training_tokens == 32 * N_STEPS


def test_so_does_a_published_one(golden: Path, expected: dict[str, torch.Tensor]) -> None:
    sae = load_crosscoder(golden / "published", HOOK)
    assert_close(sae.encode(expected["inputs"]), expected["codes"])
    assert_close(sae(expected["inputs"]), expected["reconstructions"])


def test_a_checkpoint_gives_the_codes_and_reconstructions_that_it_gave(
    golden: Path, expected: dict[str, torch.Tensor]
) -> None:
    check_checkpoint(golden / "checkpoint")
    sae = load_training_sae(golden / "checkpoint", "cpu")
    codes = sae.encode(expected["inputs"])
    assert_close(codes, expected["codes_at_checkpoint"])
    assert_close(sae.decode(codes), expected["reconstructions_at_checkpoint"])


def test_a_checkpoint_is_resumed_and_gives_the_crosscoder_that_the_run_gave(golden: Path) -> None:
    cfg = configuration(golden / "checkpoint", output_path="resumed", resume_from_checkpoint="checkpoint")
    CrosscoderTrainingRunner(cfg, documents(), models()).run()
    for name in ("sae_weights.safetensors", "sparsity.safetensors"):
        resumed, before = load_file(golden / "resumed" / name), load_file(golden / "crosscoder" / name)
        assert resumed.keys() == before.keys()
        for key, tensor in before.items():
            torch.testing.assert_close(resumed[key], tensor, rtol=1e-5, atol=1e-6)


def test_a_run_knows_its_checkpoint_and_its_end(golden: Path) -> None:
    run = configuration(golden / "checkpoint").fingerprint
    (golden / "checkpoints" / "a").mkdir(parents=True)
    (golden / "checkpoint").rename(golden / "checkpoints" / "a" / "192")
    assert newest_whole_checkpoint(golden / "checkpoints", run) == golden / "checkpoints" / "a" / "192"
    assert is_finished(golden / "crosscoder", run)


def test_a_finished_one_is_unfolded_to_go_on_from_and_folds_back(golden: Path) -> None:
    parent = load_parent(str(golden / "crosscoder"))
    parent.sae.fold_activation_norm_scaling_factor(parent.scales)
    folded = dict(parent.sae.state_dict())
    parent.sae.process_state_dict_for_saving_inference(folded)
    for name, weights in SavedRun(golden / "crosscoder").sae.state_dict().items():
        assert_close(folded[name], weights)


def test_a_table_of_latents_says_what_it_said(golden: Path) -> None:
    table = LatentTable.load(golden / "report")
    assert table.to_csv() == (golden / "report" / "latents.csv").read_bytes()
    assert list(table.labels) == SOURCES.labels


def test_a_cache_gives_the_activations_of_the_models(golden: Path) -> None:
    reader = CacheReader(golden / "cache", 4, patience_seconds=1)
    reader.begin_epoch(0)
    block = reader.next_block()
    assert block is not None
    joint = models()
    with torch.no_grad():
        activations = torch.cat(joint.source_activations(block.tokens), dim=-1)
    assert_close(block.activations.view_as(activations), activations)


def test_golden_folders_hold_no_path_of_the_machine_that_made_them() -> None:
    places = {str(Path.home()), str(Path.cwd()), sys.prefix, "/tmp/"}
    for version in VERSIONS:
        for path in (Path(__file__).parent / version).rglob("*.*"):
            content = path.read_bytes() if path.is_file() else b""
            assert not [place for place in places if place.encode() in content], path
