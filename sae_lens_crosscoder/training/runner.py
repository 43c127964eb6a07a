"""The training runner: SAELens's, over a joint model, with a paired store and whole checkpoints."""

# SAELens's attributes are mutable, and narrower here on purpose.
# pyright: reportIncompatibleVariableOverride=false

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
import wandb
from sae_lens import LanguageModelSAETrainingRunner, TrainingSAE, TrainingSAEConfig
from safetensors.torch import save_file
from typing_extensions import override

from sae_lens_crosscoder._saelens import (
    RUNNER_CFG_FILENAME,
    SPARSITY_FILENAME,
    ActivationScaler,
)
from sae_lens_crosscoder.activations import PairedActivationsStore, SourceScaler
from sae_lens_crosscoder.activations.batches import ShardedBatches, TrainingBatches
from sae_lens_crosscoder.activations.store import Documents
from sae_lens_crosscoder.errors import ConfigError, FinishedError
from sae_lens_crosscoder.evals import CrosscoderEvaluator, flat_metrics, joined_heads
from sae_lens_crosscoder.files import (
    check_writable,
    existing_folder,
    remove_leftovers,
    write_json,
    written_aside,
)
from sae_lens_crosscoder.joint_model import JointModel
from sae_lens_crosscoder.manifest import write_manifest
from sae_lens_crosscoder.training.checkpoints import RUN, store_state, store_state_filename
from sae_lens_crosscoder.training.crosscoder import TrainingCrosscoder, TrainingCrosscoderConfig
from sae_lens_crosscoder.training.failing import fit_or_save
from sae_lens_crosscoder.training.final_evaluation import TRAINING, evaluate_saved
from sae_lens_crosscoder.training.needs import check_needs
from sae_lens_crosscoder.training.parallel.division import division_for
from sae_lens_crosscoder.training.parallel.joining import join, place
from sae_lens_crosscoder.training.parallel.layouts import check_processes
from sae_lens_crosscoder.training.parallel.weights import divide
from sae_lens_crosscoder.training.parent import Parent, load_parent, load_training_sae
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.saved_run import DEAD_LATENTS, METRICS_FILENAME
from sae_lens_crosscoder.training.signals import stops_on_signal
from sae_lens_crosscoder.training.start import choose_start
from sae_lens_crosscoder.training.trainer import CrosscoderTrainer, TrainerParts


class CrosscoderTrainingRunner(LanguageModelSAETrainingRunner):
    """Trains a crosscoder (or a diff-SAE) as SAELens's runner trains an SAE.

    `run()` returns the training crosscoder and writes to `cfg.output_path`: the stock SAELens SAE in canonical form
    (`sae_weights.safetensors`, `cfg.json`, `sparsity.safetensors`), `runner_cfg.json`, `metrics.json` (the evaluation
    of what was saved), `training_curve.csv` and, if the run was long enough for one, `evaluations.csv`.

    With `cfg.from_pretrained_path` it goes on from a parent: a checkpoint of this runner, or the folder that a finished
    run wrote. Models, hooks and labels may be others (the stages of stage-wise model diffing, Bricken et al. 2024), the
    widths of the sources and the number of latents may not. Weights and BatchTopK threshold are the parent's, and so
    are the activation scales unless `cfg.reuse_parent_scales` is off. The crosscoder's own fields are the parent's too,
    except for warm-ups and annealing, which it has behind it. `metadata.parent`, `metadata.parent_stages` and
    `metadata.stage` of what is saved say where it comes from.

    Args:
        cfg: The run.
        override_dataset: A data set in memory, or one for each label of `cfg.datasets`.
        override_model: A joint model in memory, with the sources of `cfg`.
        override_sae: A training SAE to go on from.

    Raises:
        ConfigError: An `override_model` with other sources than `cfg`.
        NotFoundError: A checkpoint or pretrained folder that is not there.
    """

    cfg: CrosscoderRunnerConfig[Any]
    model: JointModel
    activations_store: PairedActivationsStore
    evaluator: CrosscoderEvaluator | None

    def __init__(
        self,
        cfg: CrosscoderRunnerConfig[Any],
        override_dataset: Documents | Mapping[str, Documents] | None = None,
        override_model: JointModel | None = None,
        override_sae: TrainingSAE[Any] | None = None,
    ) -> None:
        # SAELens's __init__ builds its own store and evaluator, so it is not called.
        self.cfg = cfg
        self._run = cfg.fingerprint
        self.ranks = join(cfg.device, cfg.process_timeout_seconds)
        check_processes(self.ranks.n, cfg.n_data_shards, cfg.compile_sae)
        place(cfg, self.ranks)
        self._only_evaluates = self._prepare_folders()
        if not self._only_evaluates:
            check_needs(cfg, self.ranks.n)
        if override_model is not None and override_model.sources.unscaled() != cfg.joint_sources:
            raise ConfigError(
                f"override_model has the sources {override_model.sources.labels} ({override_model.sources.combine}, "
                f"{override_model.sources.token_alignment}), which are not those of the configuration, "
                f"{cfg.joint_sources.labels} ({cfg.combine}, {cfg.token_alignment}). Build it with "
                "JointModel(cfg.joint_sources, models)."
            )
        device = cfg.llm_device or cfg.device
        self.model = override_model or JointModel.from_pretrained(cfg.joint_sources, default_device=device)
        self._compile_llm_if_needed()
        self._stores = [
            PairedActivationsStore.from_config(self.model, cfg, override_dataset, shard) for shard in self._shards
        ]
        self.activations_store = self._stores[0]
        self._join_eval_sequences()
        self.evaluator = self._new_evaluator()
        if not self._only_evaluates:
            self._take_sae(override_sae)

    def _take_sae(self, override_sae: TrainingSAE[Any] | None) -> None:
        """Set the crosscoder to train, and where it comes from."""
        self._parent: Parent | None = None
        self.sae = override_sae if override_sae is not None else self._new_sae()
        self._starts_trained = override_sae is not None or self.cfg.from_pretrained_path is not None
        if self._starts_trained:
            self._adopt_sae_config()
        if self.ranks.is_several and not isinstance(self.sae, TrainingCrosscoder):
            raise ConfigError(
                f"{self.sae.cfg.architecture()} cannot be trained by several processes, only crosscoders can: each "
                "process would train one of its own. Start one process."
            )
        self.sae.to(self.cfg.device)

    @override
    def run(self) -> TrainingSAE[Any]:
        """Train, save and evaluate.

        Raises:
            TrainingInterrupted: SIGINT or SIGTERM came; a checkpoint was saved first, if `checkpoint_path` is set.
            NonFiniteError: A model gave activations that are infinite or NaN. They are saved in `output_path`.
            DataError: A stream broke for good, or the data or the cache are damaged.
            MemoryFullError: A device has no memory left. This and the two above save a checkpoint first, if
                `checkpoint_path` is set.
            FinishedError: It was finished but for its evaluation, which was made.
        """
        if self._only_evaluates:
            self._make_up_for_evaluation()
        self._set_sae_metadata()
        logger = self.cfg.logger
        if logger.log_to_wandb and self.ranks.is_first:
            wandb.init(
                project=logger.wandb_project,
                entity=logger.wandb_entity,
                config=self.cfg.to_dict(),
                name=logger.run_name,
                id=logger.wandb_id,
            )
        checkpoint = self.cfg.resume_from_checkpoint
        if checkpoint is not None:
            for shard, store in zip(self._shards, self._stores, strict=True):
                store.load(str(store_state(checkpoint, shard)))
            self.sae.load_weights_from_checkpoint(checkpoint)
        division = division_for(self.cfg.dictionary_layout, self.ranks)
        if isinstance(self.sae, TrainingCrosscoder) and division.is_divided:
            divide(self.sae, division)
        # Threads of several stores would run the same models at once.
        in_background = bool(self.cfg.prefetch_llm_batches) and len(self._stores) == 1
        shards = [TrainingBatches(store, in_background) for store in self._stores]
        batches = ShardedBatches(shards, self.ranks, gathers=not division.splits_tokens)
        try:
            trainer = self._new_trainer(batches)
            if checkpoint is not None:
                trainer.load_trainer_state(checkpoint)
            self._compile_sae_if_needed()
            for store in self._stores:
                store.care.stops.append(lambda: trainer.stop_requested)
            with stops_on_signal(trainer):
                sae = fit_or_save(trainer, batches, self.cfg)
        finally:
            batches.close()
        data = self._data_read()
        if not self.ranks.is_first:
            return sae
        _write_sources(sae, self.model.sources.with_activation_scales(trainer.folded_scales))
        if self.cfg.output_path is not None:
            self._save_output(sae, Path(self.cfg.output_path), trainer, data)
            self._evaluate_saved(Path(self.cfg.output_path), trainer)
        if logger.log_to_wandb:
            wandb.finish()
        return sae

    def _make_up_for_evaluation(self) -> NoReturn:
        folder = Path(str(self.cfg.output_path))
        if self.ranks.is_first and self.evaluator is not None:
            evaluate_saved(folder, self.evaluator, self.cfg)
        raise FinishedError(
            f"The run was finished but for its evaluation, which is in {folder / METRICS_FILENAME} now."
        )

    def _save_output(
        self, sae: TrainingSAE[Any], folder: Path, trainer: CrosscoderTrainer, data: dict[str, Any]
    ) -> None:
        """Save the stock SAELens SAE and the run's configuration, aside, then move them into place."""
        assert self.cfg.dead_feature_window is not None
        training = {
            "n_tokens": trainer.n_training_samples,
            "n_steps": trainer.n_training_steps,
            "dead_latents": int(trainer.dead_neurons.sum()),
            "dead_after_n_tokens": self.cfg.dead_feature_window * trainer.cfg.train_batch_size_samples,
            **data,
        }
        with written_aside(folder) as aside:
            weights, config = sae.save_inference_model(aside)
            sparsity = {
                "sparsity": trainer.log_feature_sparsity,
                DEAD_LATENTS: trainer.dead_neurons.to(device="cpu", dtype=torch.uint8),
            }
            if isinstance(sae, TrainingCrosscoder):
                sparsity |= {name: tensor.cpu() for name, tensor in sae.left_out_of_inference().items()}
            save_file(sparsity, aside / SPARSITY_FILENAME)
            write_json(aside / RUNNER_CFG_FILENAME, self.cfg.to_dict())
            write_manifest(aside, **{RUN: self._run, TRAINING: training})
            # Those of a crosscoder that is replaced would be taken for this one's.
            (folder / METRICS_FILENAME).unlink(missing_ok=True)
        if self.cfg.logger.log_to_wandb:
            # After the files are in place: whatever W&B raises, the crosscoder is saved.
            self.cfg.logger.log(
                trainer,
                weights_path=folder / weights.name,
                cfg_path=folder / config.name,
                sparsity_path=folder / SPARSITY_FILENAME,
                wandb_aliases=["final_model"],
            )

    def _new_sae(self) -> TrainingSAE[Any]:
        cfg = self.cfg
        if cfg.from_pretrained_path is not None:
            if cfg.resume_from_checkpoint is not None:
                # The checkpoint holds all that came from the parent, which need not be there any more.
                return load_training_sae(existing_folder(cfg.resume_from_checkpoint, "checkpoint"), cfg.device)
            self._parent = load_parent(cfg.from_pretrained_path, cfg.device)
            return self._parent.sae
        values = cfg.get_training_sae_cfg_dict()
        return TrainingSAE.from_dict(TrainingSAEConfig.from_dict(values).to_dict())

    def _adopt_sae_config(self) -> None:
        """Whether a crosscoder that was not made from the configuration fits it; then its own fields are the run's."""
        given, wanted = self.sae.cfg, self.cfg.sae
        for name, own, configured in (
            ("architecture", given.architecture(), wanted.architecture()),
            *((n, getattr(given, n, None), getattr(wanted, n, None)) for n in ("d_in", "d_sae", "source_widths")),
        ):
            if own != configured:
                raise ConfigError(
                    f"The crosscoder to go on from has {name}={own!r}, the configuration says {configured!r}. "
                    f"Set it to {own!r}; sources may have other models, hooks and labels, but not other widths."
                )
        if isinstance(wanted, TrainingCrosscoderConfig) and isinstance(given, TrainingCrosscoderConfig):
            _check_own_fields(given, wanted)
            for name in wanted.schedule_fields:
                setattr(given, name, getattr(wanted, name))
            given.__post_init__()  # the schedule is checked against the crosscoder's own fields
        # A copy: the end of training changes the crosscoder's own, and the run's is saved as it began.
        self.cfg.sae = copy.deepcopy(given)

    @property
    def _shards(self) -> range:
        """The data shards of this process."""
        n = self.cfg.n_data_shards // self.ranks.n
        return range(self.ranks.rank * n, (self.ranks.rank + 1) * n)

    def _prepare_folders(self) -> bool:
        """See that the run can write, and choose its checkpoint; whether it is finished but for its evaluation."""

        def prepared() -> tuple[bool, str | None, str | None]:
            for folder in (self.cfg.output_path, self.cfg.checkpoint_path):
                if folder is not None:
                    check_writable(folder)
                    remove_leftovers(folder)
            only_evaluates = choose_start(self.cfg, self._run)
            return only_evaluates, self.cfg.resume_from_checkpoint, self.cfg.checkpoint_path

        # All ranks are told of an error: that a run is finished is none of a lost process.
        only_evaluates, self.cfg.resume_from_checkpoint, self.cfg.checkpoint_path = self.ranks.done_by_first(prepared)
        return only_evaluates

    def _join_eval_sequences(self) -> None:
        """Give the first store the held-out sequences of all shards."""
        if self.cfg.n_data_shards > 1:
            of_ranks = self.ranks.of_each([store.eval_sequences for store in self._stores])
            self.activations_store.eval_sequences = joined_heads([head for of_rank in of_ranks for head in of_rank])

    def _new_evaluator(self) -> CrosscoderEvaluator | None:
        if self.activations_store.cfg.n_eval_sequences == 0:
            return None
        return CrosscoderEvaluator.from_store(self.activations_store, self.cfg.eval_batch_size_prompts)

    def _new_trainer(self, batches: ShardedBatches) -> CrosscoderTrainer:
        def save_run_state(folder: Path) -> None:
            with batches.paused():
                for shard, store in zip(self._shards, self._stores, strict=True):
                    store.save(str(folder / store_state_filename(shard)))
            if self.ranks.is_first:
                write_json(folder / RUNNER_CFG_FILENAME, self.cfg.to_dict())

        per_source = isinstance(self.sae, TrainingCrosscoder)
        scaler = SourceScaler(self.model.sources) if per_source else ActivationScaler()
        if self._parent is not None and self.cfg.reuse_parent_scales:
            self._parent.set_scales(scaler)
        parts = TrainerParts(
            batches=batches,
            whole_batches=batches.whole(),
            scaler=scaler,
            sources=self.model.sources,
            starts_trained=self._starts_trained,
            evaluator=self.evaluator,
            save_run_state=save_run_state,
            log_folder=None if self.cfg.output_path is None else Path(self.cfg.output_path),
            run=self._run,
            n_kept_checkpoints=self.cfg.n_kept_checkpoints,
        )
        return CrosscoderTrainer(self.cfg.to_sae_trainer_config(), self.sae, parts)

    def _data_read(self) -> dict[str, Any]:
        """How much of each data set was read by all shards, how often, and what was left out of it."""
        states = self.ranks.of_each([(store.epochs.state_dict(), store.care.skipped) for store in self._stores])
        of_shards = [state for of_rank in states for state in of_rank]
        epochs = self.activations_store.epochs.with_others([counts for counts, _ in of_shards])
        skipped = list(dict.fromkeys(shard for _, left_out in of_shards for shard in left_out))
        return {**(epochs.summary() if self.ranks.is_first else {}), "skipped_shards": skipped}

    def _evaluate_saved(self, folder: Path, trainer: CrosscoderTrainer) -> None:
        if self.evaluator is None:
            return
        metrics = evaluate_saved(folder, self.evaluator, self.cfg)
        if self.cfg.logger.log_to_wandb:
            wandb.log(flat_metrics(metrics, "eval"), step=trainer.n_training_steps)

    @override
    def _set_sae_metadata(self) -> None:
        super()._set_sae_metadata()
        metadata = self.sae.cfg.metadata
        if self._parent is not None:
            metadata.parent, metadata.parent_stages = self._parent.path, self._parent.stages
        if self._starts_trained or self.cfg.stage is not None:
            metadata.stage = self.cfg.stage
        metadata.dataset_path = "+".join(config.path or config.title for config in self.cfg.dataset_configs)
        _write_sources(self.sae, self.cfg.joint_sources)

    @override
    def _compile_llm_if_needed(self) -> None:
        if self.cfg.compile_llm:
            self.model.compile_models(self.cfg.llm_compilation_mode)


def _check_own_fields(given: TrainingCrosscoderConfig, wanted: TrainingCrosscoderConfig) -> None:
    """Raise if a field is set that would have no effect, because a trained crosscoder keeps its own."""
    passed_over = ("metadata", "device", *wanted.schedule_fields)
    for field in dataclasses.fields(wanted):
        own, configured = getattr(given, field.name), getattr(wanted, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if field.name not in passed_over and configured not in (own, default):
            raise ConfigError(
                f"sae.{field.name}={configured!r} would have no effect: the crosscoder to go on from has {own!r} and "
                f"keeps it. Leave it out, or set it to {own!r}."
            )


def _write_sources(sae: TrainingSAE[Any], sources: Any) -> None:
    for name, value in sources.to_metadata().items():
        sae.cfg.metadata[name] = value
