from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import crosscoder, paired_store, run_config, standard_config, tiny_pair
from sae_lens import LoggingConfig
from sae_lens.saes.sae import TrainStepInput

from sae_lens_crosscoder import CrosscoderTrainer, SourceScaler
from sae_lens_crosscoder.activations import TrainingBatches
from sae_lens_crosscoder.errors import NotFoundError
from sae_lens_crosscoder.training import TrainerParts
from sae_lens_crosscoder.training.geometric_median import geometric_median

pytestmark = pytest.mark.filterwarnings("ignore:The data set ended")


class Recorded(TrainingBatches):
    """Training batches that remember what they gave."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.given: list[torch.Tensor] = []

    def __next__(self) -> torch.Tensor:
        self.given.append(super().__next__())
        return self.given[-1]


def trainer(sae: Any, folder: Path | None = None, **fields: Any) -> tuple[CrosscoderTrainer, Recorded]:
    model = tiny_pair()
    batches = Recorded(paired_store(model, batch_size_tokens=64))
    cfg = run_config(standard_config(), folder, **fields)
    parts = TrainerParts(batches, SourceScaler(model.sources), model.sources)
    return CrosscoderTrainer(cfg.to_sae_trainer_config(), sae, parts), batches


def test_every_source_is_scaled_while_training_and_raw_activations_are_taken_after(monkeypatch: pytest.MonkeyPatch):
    sae = crosscoder()
    seen: list[torch.Tensor] = []
    forward = type(sae).training_forward_pass

    def recording(self: Any, step_input: TrainStepInput) -> Any:
        seen.append(step_input.sae_in)
        return forward(self, step_input)

    monkeypatch.setattr(type(sae), "training_forward_pass", recording)
    fitted, batches = trainer(sae)
    fitted.fit()
    estimated_on = torch.cat(batches.given[:2])
    scales = [4 / estimated_on[:, s].norm(dim=-1).mean() for s in (slice(16), slice(16, 32))]
    columns = torch.stack(scales).repeat_interleave(16)
    torch.testing.assert_close(seen[0], batches.given[2] * columns)
    torch.testing.assert_close(sae.source_scales, torch.stack(scales))
    assert fitted.activation_scaler.scaling_factor is None
    assert sae.cfg.normalize_activations == "none"
    assert len(seen) == 12


def test_without_normalisation_training_sees_raw_activations():
    sae = crosscoder(normalize_activations="none")
    fitted, batches = trainer(sae)
    fitted.fit()
    assert len(batches.given) == 12
    assert sae.source_scales.tolist() == [1.0, 1.0]


def test_the_bias_starts_at_the_geometric_median_of_scaled_activations(monkeypatch: pytest.MonkeyPatch):
    sae = crosscoder(b_dec_init="geometric_median")
    fitted, batches = trainer(sae)
    starts: list[torch.Tensor] = []
    step = CrosscoderTrainer.step

    def recording(self: CrosscoderTrainer, batch: torch.Tensor) -> Any:
        starts.append(self.sae.b_dec.detach().clone())
        self.stop_requested = True
        return step(self, batch)

    monkeypatch.setattr(CrosscoderTrainer, "step", recording)
    with pytest.raises(Exception, match="interrupted"):
        fitted.fit()
    expected = geometric_median(fitted.activation_scaler.scale(batches.given[2]))
    torch.testing.assert_close(starts[0], expected)


def test_gradients_are_clipped_at_norm_one():
    fitted, _ = trainer(crosscoder())
    fitted._prepare()
    fitted.step(next(fitted.data_provider))
    moments = [state["exp_avg"] for state in fitted.optimizer.state.values()]
    # Adam's first moment after one step is (1 - beta1) times the gradient, which is far longer than 1 at the start.
    norm = torch.nn.utils.get_total_norm(moments).item()
    assert norm == pytest.approx(1 - fitted.cfg.adam_beta1, rel=1e-4)
    assert len(moments) == len(list(fitted.sae.parameters()))


def test_the_learning_rate_falls_to_zero_over_the_last_fifth(monkeypatch: pytest.MonkeyPatch):
    fitted, _ = trainer(crosscoder(), training_tokens=64 * 20, lr=1e-3)
    rates: list[float] = []
    step = CrosscoderTrainer.step

    def recording(self: CrosscoderTrainer, batch: torch.Tensor) -> Any:
        rates.append(self.optimizer.param_groups[0]["lr"])
        return step(self, batch)

    monkeypatch.setattr(CrosscoderTrainer, "step", recording)
    fitted.fit()
    assert rates[:17] == pytest.approx([1e-3] * 17)
    assert rates[17:] == pytest.approx([0.75e-3, 0.5e-3, 0.25e-3])


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path):
    fitted, _ = trainer(crosscoder())
    with pytest.raises(NotFoundError, match=r"no checkpoint at .*gone"):
        fitted.load_trainer_state(tmp_path / "gone")


def test_without_a_path_no_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    fitted, _ = trainer(crosscoder())
    fitted.save_checkpoint("x")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_keeps_the_scales_the_optimizer_and_the_counters(tmp_path: Path):
    sae = crosscoder()
    fitted, _ = trainer(sae)
    fitted._prepare()
    for _ in range(3):
        fitted.step(next(fitted.data_provider))
        fitted.n_training_steps += 1
    fitted.save_checkpoint("here", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    again, _ = trainer(crosscoder())
    again.load_trainer_state(tmp_path / "here")
    assert (again.n_training_steps, again.n_training_samples) == (3, 192)
    assert torch.equal(again.activation_scaler.scaling_factor, fitted.activation_scaler.scaling_factor)  # type: ignore[arg-type]
    moments = [t.optimizer.state_dict()["state"][0]["exp_avg"] for t in (again, fitted)]
    assert torch.equal(*moments)
    assert torch.equal(again.n_forward_passes_since_fired, fitted.n_forward_passes_since_fired)


def test_evaluations_run_at_their_steps_with_or_without_wandb(monkeypatch: pytest.MonkeyPatch):
    logger = LoggingConfig(log_to_wandb=False, wandb_log_frequency=2, eval_every_n_wandb_logs=2)
    fitted, _ = trainer(crosscoder(), logger=logger)
    steps: list[int] = []
    monkeypatch.setattr(fitted, "evaluator", lambda *_: steps.append(fitted.n_training_steps + 1) or {})
    fitted.fit()
    assert steps == [4, 8, 12]
