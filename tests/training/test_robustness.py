"""Runs that must not lose what they trained, and settings that must not pass without effect."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import batchtopk_config, run_config, source, standard_config, tiny_pair, token_dataset
from sae_lens import SAE, BatchTopKTrainingSAEConfig, LoggingConfig, TrainingSAE
from safetensors.torch import load_file

from sae_lens_crosscoder import CrosscoderTrainer, CrosscoderTrainingRunner, Source, Sources
from sae_lens_crosscoder.activations import SourceScaler
from sae_lens_crosscoder.errors import ConfigError, DivergedError, NotFoundError, SaveError, SourceError
from sae_lens_crosscoder.files import check_writable, written_aside
from sae_lens_crosscoder.training.parent import load_parent
from sae_lens_crosscoder.training.saved_run import SavedRun


def run(cfg: Any, **overrides: Any) -> TrainingSAE[Any]:
    return CrosscoderTrainingRunner(cfg, token_dataset(400), tiny_pair(), **overrides).run()


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_logs_to_wandb_saves_its_checkpoints_and_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = LoggingConfig(log_to_wandb=True, wandb_log_frequency=2, eval_every_n_wandb_logs=2)
    sources = [source("base"), source("chat", model_from_pretrained_kwargs={})]
    run(run_config(batchtopk_config(), tmp_path, sources=sources, logger=logger, n_checkpoints=1))
    assert (tmp_path / "output" / "sae_weights.safetensors").is_file()
    assert len(list(tmp_path.glob("checkpoints/*/*/sae_weights.safetensors"))) == 1
    lines = (tmp_path / "output" / "evaluations.csv").read_text().splitlines()
    assert "eval/sources/base/ce_loss_score" in lines[0]
    assert len(lines) == 1 + 3


COMPILED = """
import sys; sys.path.insert(0, sys.argv[1])
import torch
from helpers import batchtopk_config, run_config, tiny_pair, token_dataset
from sae_lens_crosscoder import CrosscoderTrainingRunner
for compiled in (False, True):
    torch.manual_seed(0)
    runner = CrosscoderTrainingRunner(run_config(batchtopk_config()), token_dataset(400), tiny_pair())
    if compiled:
        runner.sae.training_forward_pass = torch.compile(runner.sae.training_forward_pass, backend="aot_eager")
    runner.run()
    print(runner.sae.topk_threshold.item())
"""


def test_a_compiled_crosscoder_has_the_threshold_of_an_uncompiled_one() -> None:
    # In a process of its own: the compiler cannot trace the check of annotations that these tests run under.
    tests = str(Path(__file__).parents[1])
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILED, tests], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    plain, compiled = map(float, result.stdout.split())
    assert plain > 0
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_a_crosscoder_on_a_difference_is_refused_before_training() -> None:
    with pytest.raises(ConfigError, match="leaves one activation, so that batchtopk_crosscoder has no sources"):
        run_config(batchtopk_config(d_in=16), combine="difference")


def test_a_diff_sae_says_what_was_subtracted_from_what_and_by_which_scale(tmp_path: Path) -> None:
    cfg = run_config(
        BatchTopKTrainingSAEConfig(d_in=16, d_sae=24, k=3, normalize_activations="expected_average_only_in"),
        tmp_path,
        combine="difference",
    )
    CrosscoderTrainingRunner(cfg, token_dataset(400), tiny_pair(combine="difference")).run()
    sources = Sources.from_metadata(SAE.load_from_disk(tmp_path / "output").cfg.metadata)
    assert (sources.combine, sources.labels) == ("difference", ["base", "chat"])
    assert sources.activation_scales[0] == sources.activation_scales[1] != 1.0


@pytest.mark.parametrize("how", ["symlink", "dot", "existing"])
def test_the_output_may_be_a_link_the_current_folder_or_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    path = target
    if how == "symlink":
        path = tmp_path / "link"
        path.symlink_to(target)
    elif how == "dot":
        monkeypatch.chdir(target)
        path = Path()
    run(run_config(standard_config(), output_path=str(path)))
    assert (target / "notes.txt").read_text() == "mine"
    assert SAE.load_from_disk(target).cfg.d_sae == 32
    assert not [p.name for p in tmp_path.rglob("*.tmp*")]


def test_a_folder_that_is_a_mount_is_written_to_file_by_file(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        for text in ("first", "second"):
            with written_aside(disk) as folder:
                (folder / "a.json").write_text(text)
            assert [p.name for p in disk.iterdir()] == ["a.json"]
            assert (disk / "a.json").read_text() == text
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_place_that_cannot_be_written_to_is_named_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"Saving to .*file/out failed"):
        check_writable(tmp_path / "file" / "out")
    with pytest.raises(SaveError, match="failed"):
        CrosscoderTrainingRunner(run_config(standard_config(), output_path=str(tmp_path / "file" / "out")))


def test_a_dtype_among_the_models_arguments_is_kept_by_its_name_and_what_is_no_json_is_refused() -> None:
    assert source("a", model_from_pretrained_kwargs={"dtype": torch.bfloat16}).model_from_pretrained_kwargs == {
        "dtype": "bfloat16"
    }
    with pytest.raises(SourceError, match="cannot be saved"):
        source("a", model_from_pretrained_kwargs={"hf_model": object()})


def test_a_final_checkpoint_can_be_trained_on_with_more_tokens(tmp_path: Path) -> None:
    run(run_config(batchtopk_config(), tmp_path, save_final_checkpoint=True))
    (checkpoint,) = tmp_path.glob("checkpoints/*/final_*")
    more = {"training_tokens": 64 * 20, "resume_from_checkpoint": str(checkpoint)}
    assert run(run_config(batchtopk_config(), tmp_path / "more", **more)).cfg.normalize_activations == "none"
    run(run_config(batchtopk_config(), tmp_path / "anew", from_pretrained_path=str(checkpoint)))
    assert SAE.load_from_disk(tmp_path / "anew" / "output").cfg.d_sae == 32


def test_a_signal_in_the_last_step_lets_the_run_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = CrosscoderTrainer.step

    def interrupted(self: CrosscoderTrainer, batch: torch.Tensor) -> Any:
        if self.n_training_steps == 11:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch)

    monkeypatch.setattr(CrosscoderTrainer, "step", interrupted)
    run(run_config(standard_config(), tmp_path))
    assert (tmp_path / "output" / "cfg.json").is_file()


def test_latents_are_dead_by_the_window_of_the_run_not_by_that_of_the_frequencies(tmp_path: Path) -> None:
    cfg = run_config(batchtopk_config(), tmp_path, feature_sampling_window=11, dead_feature_window=1000)
    run(cfg)
    saved = SavedRun(str(tmp_path / "output"))
    assert saved.dead is not None
    assert int(saved.dead.sum()) == saved.metrics()["training"]["dead_latents"] == 0
    assert (load_file(tmp_path / "output" / "sparsity.safetensors")["sparsity"] < -9).any()


def test_a_crosscoder_to_go_on_from_must_be_that_of_the_configuration(tmp_path: Path) -> None:
    run(run_config(batchtopk_config(aux_loss_coefficient=0.5), tmp_path, save_final_checkpoint=True))
    (checkpoint,) = tmp_path.glob("checkpoints/*/final_*")
    for config, message in (
        (batchtopk_config(d_sae=64), r"d_sae=32, the configuration says 64"),
        (standard_config(), r"architecture='batchtopk_crosscoder', the configuration says 'standard_crosscoder'"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(run_config(config, from_pretrained_path=str(checkpoint)))
    with pytest.raises(NotFoundError, match="is no checkpoint to resume from: it lacks"):
        run(run_config(batchtopk_config(), resume_from_checkpoint=str(tmp_path / "output")))
    cfg = run_config(batchtopk_config(), tmp_path / "more", from_pretrained_path=str(checkpoint))
    run(cfg)
    saved = json.loads((tmp_path / "more" / "output" / "runner_cfg.json").read_text())
    assert saved["sae"]["aux_loss_coefficient"] == 0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_from_pretrained_kwargs": {"dtype": "bfloat16"}}, "would have no effect"),
        ({"model_name": "gpt2"}, "would have no effect"),
        ({"hook_name": "blocks.3.hook_resid_post"}, "would have no effect"),
        ({"model_kwargs": {"a": 1}}, "is not supported for several models"),
        ({"dtype": "float99"}, "dtype='float99' is unknown"),
        ({"buffer_dtype": "int3"}, "buffer_dtype='int3' is unknown"),
        ({"device": "foo"}, "device='foo' is no device"),
        ({"lr_scheduler_name": "foo"}, "lr_scheduler_name='foo' is unknown"),
        ({"context_size": 0}, "context_size=0 must be at least 1"),
        ({"train_batch_size_tokens": 0}, "train_batch_size_tokens=0 must be at least 1"),
        ({"eval_batch_size_prompts": 0}, "eval_batch_size_prompts=0 must be at least 1"),
        ({"n_eval_batches": -1}, "n_eval_batches=-1 must be at least 0"),
        ({"n_checkpoints": -1}, "n_checkpoints=-1 must be at least 0"),
        ({"n_kept_checkpoints": 0}, "n_kept_checkpoints=0 must be at least 1: fewer would remove every checkpoint"),
        ({"feature_sampling_window": 0}, "feature_sampling_window=0 must be at least 1"),
        ({"n_restart_cycles": 0}, "n_restart_cycles=0 must be at least 1"),
        ({"lr": -1e-4}, "lr=-0.0001 must be at least 0"),
        ({"lr": float("nan")}, "lr=nan must be at least 0"),
        ({"logger": LoggingConfig(wandb_log_frequency=0)}, "logger.wandb_log_frequency=0 must be at least 1"),
        ({"logger": LoggingConfig(eval_every_n_wandb_logs=0)}, "eval_every_n_wandb_logs=0 must be at least 1"),
        ({"prefetch_llm_batches": -1}, "prefetch_llm_batches must be"),
        ({"seqpos_slice": (20, 30)}, "results in an empty range"),
    ],
)
def test_what_would_have_no_effect_or_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_config(standard_config(), **fields)


@pytest.mark.parametrize("pretrained", [False, True])
def test_the_saved_configuration_is_that_which_the_run_began_with(tmp_path: Path, pretrained: bool) -> None:
    fields: dict[str, Any] = {}
    if pretrained:
        run(run_config(batchtopk_config(), tmp_path / "parent", save_final_checkpoint=True))
        (checkpoint,) = (tmp_path / "parent").glob("checkpoints/*/final_*")
        fields["from_pretrained_path"] = str(checkpoint)
    run(run_config(batchtopk_config(), tmp_path, **fields))
    saved = json.loads((tmp_path / "output" / "runner_cfg.json").read_text())
    assert saved["sae"]["normalize_activations"] == "expected_average_only_in"
    assert SAE.load_from_disk(tmp_path / "output").cfg.normalize_activations == "none"


def test_half_precision_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="dtype='float16' cannot train a crosscoder"):
        standard_config(dtype="float16")


def test_training_that_diverges_is_stopped_and_saves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="Training diverged by step"):
        run(run_config(standard_config(), tmp_path, lr=1e30))
    assert not (tmp_path / "output" / "cfg.json").exists()


def test_weights_that_are_no_numbers_are_not_saved_as_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = CrosscoderTrainer.step

    def poisoned(self: CrosscoderTrainer, batch: torch.Tensor) -> Any:
        output = step(self, batch)
        if self.n_training_steps == 6:
            self.sae.W_dec.data[0, 0] = torch.nan
        return output

    monkeypatch.setattr(CrosscoderTrainer, "step", poisoned)
    seldom = LoggingConfig(log_to_wandb=False, wandb_log_frequency=100)
    cfg = run_config(batchtopk_config(), tmp_path, n_checkpoints=3, n_kept_checkpoints=1, logger=seldom)
    with pytest.raises(DivergedError, match=r"diverged by step 7: .*weights are infinite or not a number"):
        run(cfg)
    (kept,) = tmp_path.glob("checkpoints/*/*")
    assert int(kept.name) < 64 * 7
    assert torch.isfinite(load_file(kept / "sae_weights.safetensors")["W_dec"]).all()


def test_a_finished_crosscoder_that_goes_on_keeps_the_scales_that_were_folded_into_it(tmp_path: Path) -> None:
    finished = run(run_config(batchtopk_config(), tmp_path / "first"))
    scales = Sources.from_metadata(SAE.load_from_disk(tmp_path / "first" / "output").cfg.metadata).activation_scales
    run(run_config(batchtopk_config(), tmp_path), override_sae=finished)
    again = Sources.from_metadata(SAE.load_from_disk(tmp_path / "output").cfg.metadata).activation_scales
    assert again == pytest.approx(scales, rel=1e-6)
    assert 1.0 not in again
    parent, scaler = load_parent(str(tmp_path / "output")), SourceScaler(tiny_pair().sources)
    parent.set_scales(scaler)
    x = 3 * torch.randn(20, 32)
    reconstructed = scaler.unscale(parent.sae.eval()(scaler.scale(x)))
    torch.testing.assert_close(reconstructed, SAE.load_from_disk(tmp_path / "output")(x), rtol=1e-4, atol=1e-4)


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    sources = [Source(label, missing, "transformer.h.1", 16, "AutoModelForCausalLM") for label in ("base", "chat")]
    with pytest.raises(NotFoundError, match="of source 'base' cannot be loaded as AutoModelForCausalLM"):
        CrosscoderTrainingRunner(run_config(standard_config(), sources=sources))
