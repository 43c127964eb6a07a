"""The training loop: SAELens's steps, with per-source scales, whole checkpoints and a curve that is always written."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import wandb
from sae_lens import SAETrainer, TrainingSAE
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder._saelens import (
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    SPARSITY_FILENAME,
    ActivationScaler,
    SAETrainerConfig,
    TrainStepInput,
    TrainStepOutput,
)
from sae_lens_crosscoder.errors import DivergedError, FinishedError, TrainingInterrupted
from sae_lens_crosscoder.evals import CrosscoderEvaluator
from sae_lens_crosscoder.files import existing_folder
from sae_lens_crosscoder.manifest import write_manifest
from sae_lens_crosscoder.progress import token_bar
from sae_lens_crosscoder.sources import Sources
from sae_lens_crosscoder.training.auxk_crosscoder import AuxKTrainingCrosscoder
from sae_lens_crosscoder.training.checkpoints import RUN, remove_all_but
from sae_lens_crosscoder.training.clipped_adam import clipped_step, make_fused
from sae_lens_crosscoder.training.crosscoder import TrainingCrosscoder
from sae_lens_crosscoder.training.dead_bound import ASYNCHRONOUS_DEVICES, DeadBound
from sae_lens_crosscoder.training.health import HealthWatch, explained_by_source
from sae_lens_crosscoder.training.parallel.curve import complete_row, whole_output
from sae_lens_crosscoder.training.parallel.division import Division
from sae_lens_crosscoder.training.parallel.trainer_state import folder_of_all, keep_own_part, whole_state
from sae_lens_crosscoder.training.parallel.weights import complete_gradients, gathered, whole_crosscoder
from sae_lens_crosscoder.training.step_table import StepTable
from sae_lens_crosscoder.training.undoing import Doing, undone_if_it_fails
from sae_lens_crosscoder.training.versions import CHECKPOINT

_MAX_GRADIENT_NORM = 1.0  # SAELens's
CURVE_FILENAME = "training_curve.csv"
EVALUATIONS_FILENAME = "evaluations.csv"


@dataclass(frozen=True)
class TrainerParts:
    """What a `CrosscoderTrainer` works with beside its configuration and the crosscoder."""

    batches: Iterator[Tensor]
    """Where training batches come from."""

    scaler: ActivationScaler
    """Scales activations; its factors are folded into the weights at the end."""

    sources: Sources
    """The sources, by which the curve names its columns."""

    starts_trained: bool = False
    """Whether the crosscoder goes on from trained weights, so that none of them is set from the first batch."""

    whole_batches: Iterator[Tensor] | None = None
    """The same batches whole, if `batches` gives this process's part of each; None if it gives whole ones."""

    evaluator: CrosscoderEvaluator | None = None
    """Measures the crosscoder while it trains."""

    save_run_state: Callable[[Path], None] | None = None
    """Adds the run's own files (data position, configuration) to a checkpoint folder."""

    log_folder: Path | None = None
    """Folder of `training_curve.csv` and `evaluations.csv`; None writes neither."""

    run: str = ""
    """Fingerprint of the configuration, by which checkpoints know their run."""

    n_kept_checkpoints: int | None = None
    """How many checkpoints to keep; None keeps all."""


class CrosscoderTrainer(SAETrainer[TrainingSAE[Any], Any]):
    """SAELens's `SAETrainer` with a loop of its own over the same steps.

    Beside what SAELens does, the loop writes the training curve and the evaluations made on the way as CSV whether or
    not W&B is used, writes checkpoints aside and moves them into place, and stops between two steps when asked to.

    Args:
        cfg: SAELens's trainer configuration.
        sae: The crosscoder, or any SAELens training SAE.
        parts: What it works with.
    """

    sae: TrainingSAE[Any]

    def __init__(self, cfg: SAETrainerConfig, sae: TrainingSAE[Any], parts: TrainerParts) -> None:
        super().__init__(cfg=cfg, sae=sae, data_provider=parts.batches, evaluator=parts.evaluator)
        make_fused(self.optimizer)
        self.activation_scaler = parts.scaler
        self.parts = parts
        self.stop_requested = False
        is_ours = isinstance(sae, TrainingCrosscoder)
        self.division = sae.division if is_ours else Division()
        if self.division.splits_latents:
            self.act_freq_scores = self.act_freq_scores.new_zeros(len(self.division.shard(sae.cfg.d_sae)))
            self.n_forward_passes_since_fired = self.act_freq_scores.clone()
        self._dead_bound = DeadBound(cfg.dead_feature_window)
        self.doing: Doing = "harvest"
        self.undone_batch: Tensor | None = None
        """The batch whose step failed, and left nothing behind."""
        self.folded_scales: list[float] = sae.source_scales.tolist() if is_ours else [1.0] * len(parts.sources)
        """The factor of each source that is folded into the weights, of a finished crosscoder before it goes on."""

    @override
    def fit(self) -> TrainingSAE[Any]:
        """Train to the end, fold the activation scales into the weights, and return the crosscoder.

        Raises:
            TrainingInterrupted: `stop_requested` was set; a checkpoint was saved first, if there is a path for one.
            DivergedError: The loss or the weights are infinite or not a number.
        """
        self.sae.to(self.cfg.device)
        if self.n_training_steps == 0:
            self._prepare()
        total, n_tokens = self.cfg.total_training_samples, self.cfg.train_batch_size_samples
        n_all = -(-total // n_tokens) * n_tokens  # the last batch is a whole one
        watch = HealthWatch(self.sae.cfg.d_sae, total // n_tokens, self.cfg.dead_feature_window)
        with (
            self._table(CURVE_FILENAME) as curve,
            self._table(EVALUATIONS_FILENAME) as evaluations,
            token_bar("Training", n_all, self.n_training_samples, shown=self.division.ranks.is_first) as bar,
        ):
            while self.n_training_samples < total:
                self._log(self.maybe_reset_sparsity())
                batch = next(self.data_provider)
                with undone_if_it_fails(self, batch):
                    output = self.step(batch)
                if self._is_logging_step():
                    self.doing = "logging"
                    row = self._curve_row(output)
                    self._check_finite(self.n_training_steps + 1, row["losses/overall_loss"], self._sum_of_weights())
                    watch.look(self.n_training_steps + 1, row)
                    curve.write(self.n_training_steps + 1, row)
                    self._log(row)
                    bar.set_postfix(loss=f"{row['losses/overall_loss']:.4g}", l0=f"{row['metrics/l0']:.3g}")
                if self._is_evaluation_step():
                    evaluations.write(self.n_training_steps + 1, self._evaluate())
                self.n_training_steps += 1
                self.doing = "harvest"
                bar.update(self.division.n_tokens(len(output.sae_in)))
                if self.n_training_samples < total:  # from a checkpoint of the end no run could go on
                    self._checkpoint_if_needed()
                    if self._stops_now():
                        self._save_and_stop()
        if isinstance(self.sae, TrainingCrosscoder):
            self.sae.gradient_memory.keep({})  # there is no next step
        self._log(self.full_sparsity_window_log())
        self._check_finite(self.n_training_steps, self._sum_of_weights())
        if self.cfg.save_final_checkpoint:
            self.save_checkpoint(checkpoint_name=f"final_{self.n_training_samples}")
        self._fold_scales()
        self._make_whole()
        self.set_final_sae_metadata()
        return self.sae

    @override
    def step(self, batch: Tensor) -> TrainStepOutput:
        """One step on a raw batch, or on this process's part of one."""
        output = super().step(batch)
        self.n_training_samples += self.division.n_tokens(len(batch)) - len(batch)
        return output

    @override
    def _train_step(self, sae: TrainingSAE[Any], sae_in: Tensor) -> TrainStepOutput:
        """SAELens's step; clipping is part of Adam's pass, and firing is counted on active pairs if there are some."""
        sae.train()
        with self._dead_bounded(sae), self.autocast_if_enabled:
            output = sae.training_forward_pass(
                TrainStepInput(
                    sae_in=sae_in,
                    coefficients=self.get_coefficients(),
                    dead_neuron_mask=self.dead_neurons,
                    n_training_steps=self.n_training_steps,
                    is_logging_step=self._is_logging_step(),
                )
            )
        output.loss.backward()
        self._count_firing(output.feature_acts)
        norm = complete_gradients(sae) if isinstance(sae, TrainingCrosscoder) and self.division.is_divided else None
        clipped_step(self.optimizer, _MAX_GRADIENT_NORM, norm)
        if isinstance(sae, TrainingCrosscoder):
            sae.gradient_memory.keep({"W_enc": sae.W_enc, "W_dec": sae.W_dec} if output.feature_acts.is_sparse else {})
        self.optimizer.zero_grad()
        self.lr_scheduler.step()
        for scheduler in self.coefficient_schedulers.values():
            scheduler.step()
        return output

    @contextmanager
    def _dead_bounded(self, sae: TrainingSAE[Any]) -> Generator[None]:
        """Tell AuxK how many latents can be dead, on devices that would have to be waited for."""
        waits = sae.device.type not in ASYNCHRONOUS_DEVICES or self.division.is_divided  # ranks agree on exact numbers
        if waits or not isinstance(sae, AuxKTrainingCrosscoder):
            yield
            return
        sae.n_dead_bound = self._dead_bound.next(self.n_forward_passes_since_fired)
        try:
            yield
        finally:
            sae.n_dead_bound = None

    @torch.no_grad()
    def _count_firing(self, feature_acts: Tensor) -> None:
        if feature_acts.is_sparse:
            # Added up: to select or to count pairs, CUDA would wait for their number.
            n_fired = torch.zeros(feature_acts.shape[1], dtype=torch.long, device=feature_acts.device)
            n_fired.scatter_add_(0, feature_acts.indices()[1], (feature_acts.values() != 0).long())
        else:
            n_fired = (feature_acts != 0).sum(dim=0)
        n_fired = self.division.sum_of_tokens(n_fired)
        self.n_forward_passes_since_fired = (self.n_forward_passes_since_fired + 1) * (n_fired == 0)
        self.act_freq_scores += n_fired
        self.n_frac_active_samples += self.cfg.train_batch_size_samples

    @override
    def full_sparsity_window_log(self) -> dict[str, Any]:  # a run that is resumed may not have counted anything yet
        return super().full_sparsity_window_log() if self.n_frac_active_samples > 0 else {}

    @override
    def _reset_running_sparsity_stats(self) -> None:
        self.act_freq_scores = torch.zeros_like(self.act_freq_scores)  # of the latents of this rank
        self.n_frac_active_samples = 0

    @override
    def save_checkpoint(
        self, checkpoint_name: str, base_path: Path | str | None = None, wandb_aliases: list[str] | None = None
    ) -> None:
        """Save everything a run needs to go on, aside, then move it into place whole.

        Raises:
            DivergedError: The weights are infinite or not a number; the checkpoints before are kept.
            SaveError: The system refused a write. No half-written checkpoint stays.
        """
        self._check_finite(self.n_training_steps, self._sum_of_weights())
        base = base_path if base_path is not None else self.cfg.checkpoint_path
        if base is None:
            if self.cfg.logger.log_to_wandb:
                super().save_checkpoint(checkpoint_name, base_path, wandb_aliases)
            return
        target, ranks = Path(base) / checkpoint_name, self.division.ranks
        with folder_of_all(target, ranks) as folder, whole_state(self):
            if ranks.is_first:
                self.sae.save_model(folder)
                save_file({"sparsity": self.log_feature_sparsity}, folder / SPARSITY_FILENAME)
                self.save_trainer_state(folder)
            if self.parts.save_run_state is not None:
                self.parts.save_run_state(folder)
            ranks.wait()
            if ranks.is_first:
                write_manifest(folder, **{RUN: self.parts.run, CHECKPOINT.key: CHECKPOINT.version})
        if not ranks.is_first:
            return
        if self.parts.n_kept_checkpoints is not None:
            remove_all_but(self.parts.n_kept_checkpoints, target.parent, self.n_training_samples)
        if self.cfg.logger.log_to_wandb:
            # After the files are in place: whatever W&B raises, the checkpoint is whole.
            self.cfg.logger.log(
                self,
                weights_path=target / SAE_WEIGHTS_FILENAME,
                cfg_path=target / SAE_CFG_FILENAME,
                sparsity_path=target / SPARSITY_FILENAME,
                wandb_aliases=wandb_aliases,
            )

    @override
    def load_trainer_state(self, checkpoint_path: Path | str) -> None:
        """Go on from a checkpoint: optimizer, schedules, counters and activation scales.

        Raises:
            NotFoundError: There is no such folder.
            FinishedError: The checkpoint is that of a finished run.
        """
        super().load_trainer_state(existing_folder(checkpoint_path, "checkpoint"))
        keep_own_part(self)
        self._dead_bound = DeadBound(self.cfg.dead_feature_window)
        make_fused(self.optimizer)
        if self.n_training_samples >= self.cfg.total_training_samples:
            raise FinishedError(
                f"The checkpoint {checkpoint_path} has seen {self.n_training_samples} tokens, the run is to see "
                f"{self.cfg.total_training_samples}: it is finished. Raise training_tokens to train on."
            )
        self.checkpoint_thresholds = [t for t in self.checkpoint_thresholds if t >= self.n_training_samples]

    def _prepare(self) -> None:
        normalization = self.sae.cfg.normalize_activations
        n_batches, d_in = self.cfg.n_batches_for_norm_estimate, self.sae.cfg.d_in
        batches = self.parts.whole_batches or self.data_provider
        if normalization == "expected_average_only_in" and self.activation_scaler.scaling_factor is None:
            self.activation_scaler.estimate_scaling_factor(d_in, batches, n_batches)
        elif normalization == "covariance_whitening" and self.activation_scaler.whitening is None:
            self.activation_scaler.estimate_whitening(d_in, batches, n_batches)
        if self.parts.starts_trained:
            return
        if isinstance(self.sae, TrainingCrosscoder) and self.sae.cfg.starts_from_data:
            batch = next(batches).to(self.sae.device)
            self.sae.initialize_from_data(self.activation_scaler.scale(batch))

    def _fold_scales(self) -> None:
        scaler = self.activation_scaler
        if scaler.scaling_factor is not None:
            factors = torch.as_tensor(scaler.scaling_factor, dtype=torch.float64).expand(len(self.folded_scales))
            self.folded_scales = [
                before * factor for before, factor in zip(self.folded_scales, factors.tolist(), strict=True)
            ]
            self.sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
            scaler.scaling_factor = None
        if scaler.whitening is not None:
            whitening = scaler.whitening
            self.sae.fold_activation_whitening(whitening.mean, whitening.matrix, whitening.inverse_matrix)
            scaler.whitening = None

    def _make_whole(self) -> None:
        """Put the crosscoder and its statistics together; on the first rank, on the CPU, and only if it is divided."""
        if isinstance(self.sae, TrainingCrosscoder) and self.division.splits_latents:
            ranks = self.division.ranks
            self.act_freq_scores = gathered(self.act_freq_scores, "", ranks)
            self.n_forward_passes_since_fired = gathered(self.n_forward_passes_since_fired, "", ranks)
            self.sae = whole_crosscoder(self.sae)

    def _total(self, value: Tensor) -> Tensor:
        return self.division.ranks.sum(value) if self.division.is_divided else value

    def _stops_now(self) -> bool:
        """Whether any rank was asked to stop; all stop after the same step."""
        if not self.division.is_divided:  # a device would be waited for
            return self.stop_requested
        return bool(self._total(torch.tensor(int(self.stop_requested), device=self.sae.W_dec.device)))

    def _save_and_stop(self) -> None:
        message = f"Training was interrupted after {self.n_training_samples} tokens"
        path = self.cfg.checkpoint_path
        if path is None:
            raise TrainingInterrupted(f"{message}. Nothing was saved: there is no checkpoint_path.")
        self.save_checkpoint(str(self.n_training_samples))
        checkpoint = f"{path}/{self.n_training_samples}"
        raise TrainingInterrupted(f"{message}. Go on with resume_from_checkpoint={checkpoint}", checkpoint)

    @torch.no_grad()
    def _sum_of_weights(self) -> float:
        """Not finite if any weight is not: a sparse step leaves out latents whose scores are not a number."""
        return self._total(torch.stack([weights.sum().float() for weights in self.sae.parameters()]).sum()).item()

    def _check_finite(self, step: int, *values: float) -> None:
        if not all(math.isfinite(value) for value in values):
            raise DivergedError(
                f"Training diverged by step {step}: the loss or the weights are infinite or not a number. Lower lr, or "
                "look for extreme activations (max_activation_norm_multiple drops them)."
            )

    @override
    def _is_logging_step(self) -> bool:
        return (self.n_training_steps + 1) % self.cfg.logger.wandb_log_frequency == 0

    def _is_evaluation_step(self) -> bool:
        every = self.cfg.logger.wandb_log_frequency * self.cfg.logger.eval_every_n_wandb_logs
        return self.evaluator is not None and (self.n_training_steps + 1) % every == 0

    def _evaluate(self) -> dict[str, Any]:
        assert self.evaluator is not None
        self.doing = "evaluation"
        sae = whole_crosscoder(self.sae) if isinstance(self.sae, TrainingCrosscoder) else self.sae
        if not self.division.ranks.is_first:
            return {}
        metrics = self.evaluator(sae.to(self.cfg.device), self.data_provider, self.activation_scaler)
        if self.cfg.logger.log_to_wandb:
            histograms = {name: wandb.Histogram(values) for name, values in sae.log_histograms().items()}  # pyright: ignore[reportArgumentType]
            self._log({**metrics, **histograms})
        return metrics

    def _table(self, filename: str) -> StepTable:
        folder = self.parts.log_folder
        path = None if folder is None or not self.division.ranks.is_first else folder / filename
        return StepTable(path, self.n_training_steps)

    @torch.no_grad()
    def _curve_row(self, output: TrainStepOutput) -> dict[str, Any]:
        output = whole_output(output, self.division)
        row = self.build_train_step_log_dict(output, self.n_training_samples)
        complete_row(row, self.division)
        return row | explained_by_source(output, self.parts.sources)

    def _log(self, row: dict[str, Any]) -> None:
        if row and self.cfg.logger.log_to_wandb and self.division.ranks.is_first:
            wandb.log(row, step=self.n_training_steps)
