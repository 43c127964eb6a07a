from __future__ import annotations

import csv
import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    batchtopk_config,
    crosscoder,
    run_config,
    source,
    standard_config,
    text_dataset,
    tiny_pair,
    tiny_tokenizer,
    token_dataset,
)
from sae_lens import SAE, StandardTrainingSAEConfig, TrainingSAE

from sae_lens_crosscoder import CrosscoderTrainer, CrosscoderTrainingRunner, DatasetConfig, JointModel, Sources
from sae_lens_crosscoder.errors import ConfigError, NotFoundError, SaveError, TrainingInterrupted

pytestmark = pytest.mark.filterwarnings("ignore:The data set ended")


def run(cfg: Any, model: JointModel | None = None, data: Any = None) -> TrainingSAE[Any]:
    return CrosscoderTrainingRunner(cfg, token_dataset(400) if data is None else data, model or tiny_pair()).run()


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("config", [standard_config, batchtopk_config], ids=["standard", "batchtopk"])
def test_a_run_leaves_a_stock_sae_its_metrics_its_curve_and_its_configuration(tmp_path: Path, config: Any):
    cfg = run_config(config(), tmp_path)
    sae = run(cfg)
    out = tmp_path / "output"
    assert sorted(path.name for path in out.iterdir()) == [
        "cfg.json",
        "manifest.json",
        "metrics.json",
        "runner_cfg.json",
        "sae_weights.safetensors",
        "sparsity.safetensors",
        "training_curve.csv",
    ]
    saved = SAE.load_from_disk(out)
    assert type(saved).__module__.startswith("sae_lens.")
    x = torch.randn(20, 32) * 3
    torch.testing.assert_close(saved(x), sae.eval()(x), rtol=1e-4, atol=1e-4)
    sources = Sources.from_metadata(saved.cfg.metadata)
    assert sources.labels == ["base", "chat"]
    assert sources.activation_scales == pytest.approx(sae.source_scales.tolist(), rel=1e-6)
    assert 1.0 not in sources.activation_scales
    assert read_json(out / "runner_cfg.json") == json.loads(json.dumps(cfg.to_dict()))


def test_metrics_are_those_of_what_was_saved(tmp_path: Path):
    cfg = run_config(batchtopk_config(), tmp_path, dead_feature_window=4)
    runner = CrosscoderTrainingRunner(cfg, token_dataset(400), tiny_pair())
    runner.run()
    metrics = read_json(tmp_path / "output" / "metrics.json")
    training = metrics.pop("training")
    assert runner.evaluator is not None
    expected = runner.evaluator.evaluate(SAE.load_from_disk(tmp_path / "output"))
    assert metrics == json.loads(json.dumps(expected))
    assert metrics["n_tokens"] == 2 * 4 * 15
    assert (training["n_tokens"], training["n_steps"], training["dead_after_n_tokens"]) == (768, 12, 256)


def test_the_curve_has_a_row_a_step_with_every_sources_explained_variance(tmp_path: Path):
    run(run_config(standard_config(), tmp_path))
    with (tmp_path / "output" / "training_curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    names = {
        "losses/overall_loss",
        "losses/mse_loss",
        "losses/l1_loss",
        "metrics/l0",
        "metrics/explained_variance/chat",
    }
    assert names <= set(rows[0])
    assert len({row["losses/mse_loss"] for row in rows}) == 12


def test_training_explains_more_than_the_start(tmp_path: Path):
    run(run_config(batchtopk_config(64, 8), tmp_path, training_tokens=64 * 150, lr=3e-3))
    metrics = read_json(tmp_path / "output" / "metrics.json")
    for label in ("base", "chat"):
        assert metrics["sources"][label]["explained_variance"] > 0.3
    assert metrics["l0"] == pytest.approx(8, rel=0.4)


def test_a_mixture_is_trained_and_measured_by_data_set(tmp_path: Path):
    cfg = run_config(
        batchtopk_config(),
        tmp_path,
        dataset_path="",
        datasets=[DatasetConfig(label="words", weight=0.6), DatasetConfig(label="ids", weight=0.4)],
    )
    data = {"words": text_dataset(), "ids": token_dataset()}
    run(cfg, tiny_pair(tokenizer=tiny_tokenizer()), data)
    metrics = read_json(tmp_path / "output" / "metrics.json")
    assert set(metrics["datasets"]) == {"words", "ids"}
    assert {"ce_loss_score", "kl_div_score", "explained_variance"} <= set(metrics["datasets"]["ids"]["sources"]["chat"])
    assert read_json(tmp_path / "output" / "cfg.json")["metadata"]["dataset_path"] == "words+ids"


def test_a_difference_sae_is_a_saelens_architecture_on_the_same_store(tmp_path: Path):
    cfg = run_config(StandardTrainingSAEConfig(d_in=16, d_sae=24), tmp_path, combine="difference")
    run(cfg, tiny_pair(combine="difference"))
    saved = SAE.load_from_disk(tmp_path / "output")
    assert saved.cfg.d_in == 16
    assert Sources.from_metadata(saved.cfg.metadata).combine == "difference"


def test_checkpoints_are_whole_and_as_many_as_asked(tmp_path: Path):
    run(run_config(batchtopk_config(), tmp_path, n_checkpoints=2, save_final_checkpoint=True))
    (folder,) = (tmp_path / "checkpoints").iterdir()
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 3
    assert "final_768" in names
    for name in names:
        assert sorted(path.name for path in (folder / name).iterdir()) == [
            "activation_scaler.json",
            "activations_store_state.safetensors",
            "cfg.json",
            "manifest.json",
            "runner_cfg.json",
            "sae_weights.safetensors",
            "sparsity.safetensors",
            "trainer_state.pt",
        ]
        TrainingSAE.load_from_disk(folder / name)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_a_checkpoint_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    step = CrosscoderTrainer.step
    before = signal.getsignal(number)

    def interrupted(self: CrosscoderTrainer, batch: torch.Tensor) -> Any:
        if self.n_training_steps == 4:
            os.kill(os.getpid(), number)
        return step(self, batch)

    monkeypatch.setattr(CrosscoderTrainer, "step", interrupted)
    with pytest.raises(TrainingInterrupted, match=r"after 320 tokens. Go on with resume_from_checkpoint=.*/320"):
        run(run_config(standard_config(), tmp_path))
    assert signal.getsignal(number) is before
    (checkpoint,) = tmp_path.glob("checkpoints/*/*")
    assert checkpoint.name == "320"


def test_without_a_checkpoint_path_an_interruption_saves_nothing(monkeypatch: pytest.MonkeyPatch):
    step = CrosscoderTrainer.step

    def stopping(self: CrosscoderTrainer, batch: torch.Tensor) -> Any:
        self.stop_requested = True
        return step(self, batch)

    monkeypatch.setattr(CrosscoderTrainer, "step", stopping)
    with pytest.raises(TrainingInterrupted, match=r"was interrupted after 64 tokens. Nothing was saved"):
        run(run_config(standard_config()))


def test_a_full_disk_leaves_the_earlier_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saves: list[str] = []
    torch_save = torch.save

    def full_at_the_second(value: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        saves.append(str(path))
        if len(saves) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        torch_save(value, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full_at_the_second)
    cfg = run_config(batchtopk_config(), tmp_path, n_checkpoints=3)
    with pytest.raises(SaveError, match="No space left"):
        run(cfg)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    (whole,) = folder.iterdir()
    assert len(saves) == 2
    resumed = run_config(batchtopk_config(), tmp_path / "again", resume_from_checkpoint=str(whole))
    run(resumed)
    assert (tmp_path / "again" / "output" / "metrics.json").is_file()


def test_a_training_run_can_go_on_from_a_pretrained_crosscoder(tmp_path: Path):
    run(run_config(standard_config(), tmp_path, save_final_checkpoint=True))
    (final,) = tmp_path.glob("checkpoints/*/final_*")
    cfg = run_config(standard_config(), from_pretrained_path=str(final))
    runner = CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair())
    assert torch.equal(runner.sae.W_dec, TrainingSAE.load_from_disk(final).W_dec)


def test_a_missing_pretrained_folder_is_named(tmp_path: Path):
    cfg = run_config(standard_config(), from_pretrained_path=str(tmp_path / "gone"))
    with pytest.raises(NotFoundError, match=r"no pretrained training crosscoder at .*gone"):
        CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair())


def test_a_model_with_other_sources_than_the_configuration_is_refused():
    cfg = run_config(standard_config(), sources=[source("base"), source("other")])
    with pytest.raises(ConfigError, match=r"has the sources \['base', 'chat'\] .* not those .* \['base', 'other'\]"):
        CrosscoderTrainingRunner(cfg, token_dataset(), tiny_pair())


def test_without_held_out_sequences_there_are_no_metrics(tmp_path: Path):
    run(run_config(standard_config(), tmp_path, n_eval_batches=0))
    assert not (tmp_path / "output" / "metrics.json").exists()
    assert (tmp_path / "output" / "cfg.json").is_file()


def test_norms_are_estimated_on_batches_that_training_does_not_see(monkeypatch: pytest.MonkeyPatch):
    runner = CrosscoderTrainingRunner(run_config(standard_config()), token_dataset(400), tiny_pair())
    runner.run()
    assert runner.activations_store.n_batches_served == 12 + 2


def test_a_prefetching_run_is_the_run_without(tmp_path: Path):
    weights = []
    for n_prefetched in (0, 3):
        torch.manual_seed(3)
        weights.append(run(run_config(batchtopk_config(), prefetch_llm_batches=n_prefetched)).W_dec.detach())
    assert torch.equal(weights[0], weights[1])


def test_a_given_crosscoder_is_trained_without_a_warning():
    given = crosscoder()
    runner = CrosscoderTrainingRunner(run_config(given.cfg), token_dataset(), tiny_pair(), given)
    assert runner.sae is given
