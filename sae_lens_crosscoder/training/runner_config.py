"""The configuration of a training run: SAELens's, with sources in place of one model and a mixture of data sets."""

# Fields that follow a recipe may be None until they are filled in; SAELens declares them without None.
# pyright: reportIncompatibleVariableOverride=false

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig, TrainingSAEConfig
from typing_extensions import override

from sae_lens_crosscoder.activations import DatasetConfig, SequenceFormat, StoreConfig, excluded_token_ids
from sae_lens_crosscoder.activations.disk_cache.description import CacheDescription, origin_of
from sae_lens_crosscoder.activations.stream_care import Patience
from sae_lens_crosscoder.errors import ConfigError, ShapeError, first_line
from sae_lens_crosscoder.fields import checked_fields, read_config_file
from sae_lens_crosscoder.fingerprint import fingerprint
from sae_lens_crosscoder.joint_model import JOINT_HOOK_NAME
from sae_lens_crosscoder.sources import Combine, Source, Sources, TokenAlignment
from sae_lens_crosscoder.training.crosscoder import TrainingCrosscoderConfig
from sae_lens_crosscoder.training.field_values import check_values
from sae_lens_crosscoder.training.parallel.layouts import DictionaryLayout, check_data_shards
from sae_lens_crosscoder.training.recipes import recipe_for
from sae_lens_crosscoder.training.sae_config import sae_config
from sae_lens_crosscoder.training.versions import CONFIG, migrated_config

_NO_PART_OF_THE_RESULT = {
    *("checkpoint_path", "output_path", "overwrite_output", "resume_from_checkpoint", "logger", "verbose"),
    *("n_checkpoints", "n_kept_checkpoints", "save_final_checkpoint", "sae_lens_version", "sae_lens_training_version"),
    *("device", "llm_device", "act_store_device", "prefetch_llm_batches"),
    *("dictionary_layout", "process_timeout_seconds", CONFIG.key),
    # Of intact data none of these changes anything, and a run that ended for want of them is to go on with others.
    *("stream_retries", "stream_retry_seconds", "skip_bad_shards"),
}

T_TRAINING_SAE_CONFIG = TypeVar("T_TRAINING_SAE_CONFIG", bound=TrainingSAEConfig, covariant=True)


@dataclass
class CrosscoderRunnerConfig(LanguageModelSAERunnerConfig[T_TRAINING_SAE_CONFIG]):
    """A SAELens runner configuration for several models.

    All of SAELens's fields keep their meaning; `sources` stands in place of `model_name`, `model_class_name` and
    `hook_name`, which are filled in. `sae` may be a crosscoder or, with `combine="difference"`, any SAELens training
    configuration. Fields whose default is None follow the architecture's published recipe (`training/recipes.py`).

    Raises:
        SourceError: Sources that are missing, misspelt or do not fit `combine`.
        ShapeError: `sae.d_in` is not the joint width of the sources.
        ConfigError: Fields that contradict each other.
    """

    sources: Sequence[Source | Mapping[str, Any]] = field(default_factory=list[Source])
    """The models, hooks, widths and labels, in the order of the columns; mappings of their fields do as well."""

    combine: Combine = "concat"
    """"concat" trains a crosscoder on all sources side by side, "difference" an SAE on the second minus the first."""

    token_alignment: TokenAlignment = "same_ids"
    """"same_ids" feeds all models the same token ids and refuses models whose vocabularies differ. "character_offsets"
    is for different tokenizers: each model reads the text in tokens of its own, at most `context_size`, and a row is
    kept where tokens of all models end at the same character. The other tokens give none, so that more text goes
    through the models for the same training_tokens; the share that is kept is logged and stands in metrics.json, and
    one below 10 % is an error. Needs text or chats and fast tokenizers; a tokenizer without BOS goes without."""

    datasets: Sequence[DatasetConfig | Mapping[str, Any]] = field(default_factory=list[DatasetConfig])
    """A mixture of data sets with weights, in place of `dataset_path`; mappings of their fields do as well."""

    stage: str | None = None
    """Name of this run among stages that are trained one from the other (`from_pretrained_path`), such as "D"."""

    reuse_parent_scales: bool = True
    """Whether a run with `from_pretrained_path` scales activations as its parent did, or estimates the scales anew."""

    buffer_dtype: str | None = None
    """Dtype of the activation buffer; None is `dtype`. "bfloat16" halves its memory."""

    max_activation_norm_multiple: float | None = None
    """Drop tokens whose activation norm, in any source, is above this multiple of the median; None keeps all."""

    resume_from_checkpoint: str | None = None
    """A checkpoint folder to go on from as if unbroken, or "auto": the newest undamaged one below `checkpoint_path` of
    the same configuration, or a new run if there is none."""

    n_kept_checkpoints: int | None = None
    """How many checkpoints to keep, the newest; older ones are removed when a new one is whole. None keeps all."""

    n_data_shards: int = 1
    """Parts into which the documents are divided, each with a buffer and random numbers of its own; a batch has an
    equal part of each. `torchrun` needs a multiple of its number of processes, on which the result does not depend."""

    dictionary_layout: DictionaryLayout = "replicated"
    """Where `torchrun` starts several processes: "replicated" gives each the whole dictionary and a part of each batch,
    and exchanges gradients; "sharded" gives each a part of the latents and the whole batch, and exchanges activations
    and reconstructions. The result is the same."""

    process_timeout_seconds: int = 1800
    """How long a process waits for the others before the run ends with an error; evaluations have to be shorter."""

    stream_retries: int = 8
    """How often a data set that breaks is opened anew at its position before the run saves a checkpoint and ends."""

    stream_retry_seconds: float = 1.0
    """The wait before the first retry, in seconds; every further one is twice as long, up to five minutes."""

    skip_bad_shards: bool = False
    """Leave out the rest of a file of the data, or a shard of the cache, that cannot be decoded; it is named in a
    warning and in metrics.json. Otherwise the run saves a checkpoint and ends with its name."""

    overwrite_output: bool = False
    """Whether a crosscoder that is in `output_path` already may be replaced."""

    context_size: int = 1024
    """Tokens of a sequence."""

    n_batches_in_buffer: int = 512
    """Size of the activation buffer, in sequences: it holds n_batches_in_buffer * context_size tokens."""

    store_batch_size_prompts: int = 4
    """Sequences that go through the models at once."""

    exclude_special_tokens: bool | list[int] = True
    """Drop BOS, EOS, padding and separator tokens (or the listed ids) from training and evaluation."""

    n_batches_for_norm_estimate: int = 100
    """Batches that the activation scales are estimated on, before training."""

    prefetch_llm_batches: bool | int | None = None
    """Run the models (or read the cache) in a thread while the crosscoder trains, this many batches of
    store_batch_size_prompts further ahead than the room of trained tokens allows. Batches stay the same. 0 uses no
    thread; None is 1 where activations are on CUDA and 0 elsewhere."""

    use_cached_activations: bool = False
    """Train on the cache of joint activations at `cached_activations_path` in place of running the models."""

    cached_activations_path: str | None = None
    """Folder that `sae-lens-crosscoder cache` wrote or is writing: the run waits for what is missing. Training goes
    through it as often as training_tokens asks for, each time in another order."""

    lr: float | None = None
    """Learning rate; None is the recipe's."""

    train_batch_size_tokens: int | None = None
    """Tokens of a training batch; None is the recipe's."""

    lr_warm_up_steps: int | None = None
    """Steps over which the learning rate rises; None is the recipe's."""

    lr_decay_steps: int | None = None
    """Steps over which the learning rate falls to 0 at the end; None is the recipe's."""

    dead_feature_window: int | None = None
    """Steps without firing after which a latent counts as dead; None is the recipe's."""

    def __post_init__(self) -> None:
        joint = self.joint_sources
        self.sources = list(joint)
        self.datasets = self._dataset_entries()
        self._check_fields(joint)
        self._fill_in_model(joint)
        # SAELens takes True for "already tokenized" and refuses it beside chat formatting; here each data set says.
        self.is_dataset_tokenized = False
        self._fill_in_recipe()
        if self.prefetch_llm_batches is None:
            self.prefetch_llm_batches = int((self.act_store_device or self.device).startswith("cuda"))
        try:
            super().__post_init__()
        except ValueError as error:
            raise ConfigError(first_line(error)) from error
        if self.token_alignment == "character_offsets":
            self.store_config(None).check_for_own_tokens()
        if self.use_cached_activations:
            self._check_cache(joint)

    @property
    def joint_sources(self) -> Sources:
        """The sources with how they are combined.

        They begin with scale 1, also if they were read from a trained crosscoder: the factor that a run folds into the
        weights belongs to what it saves.
        """
        return Sources.from_dicts(self.sources, self.combine, self.token_alignment).unscaled()

    @property
    def dataset_configs(self) -> list[DatasetConfig]:
        """The data sets of the mixture; one made of SAELens's fields if `datasets` is empty."""
        if self.datasets:
            return self._dataset_entries()
        kind = "chat" if self.use_chat_formatting else "auto"
        return [DatasetConfig(path=self.dataset_path, kind=kind, streaming=self.streaming)]

    @property
    def sequence_format(self) -> SequenceFormat:
        """How documents become sequences."""
        separator, alone = self.sequence_separator_token, self.disable_concat_sequences
        return SequenceFormat(self.context_size, self.prepend_bos, separator, alone)

    @property
    def _excludes_own_special_tokens(self) -> bool:  # which have no ids in common
        return self.token_alignment == "character_offsets" and self.exclude_special_tokens is True

    @property
    def patience(self) -> Patience:
        """How long a stream that breaks is tried again, and whether damaged shards are left out."""
        return Patience(self.stream_retries, self.stream_retry_seconds, self.skip_bad_shards)

    @property
    def buffer_tokens(self) -> int:
        """Tokens whose activations the buffer holds."""
        return self.n_batches_in_buffer * len(range(self.context_size)[slice(*self.seqpos_slice)])

    @property
    def fingerprint(self) -> str:
        """Equal for runs that give the same crosscoder. Where files lie, what is logged and devices are left out."""
        values = {name: value for name, value in self.to_dict().items() if name not in _NO_PART_OF_THE_RESULT}
        values["sae"] = {name: value for name, value in values["sae"].items() if name not in ("device", "metadata")}
        return fingerprint(values)

    def store_config(self, tokenizer: Any) -> StoreConfig:
        """How the store harvests, drops and shuffles.

        Args:
            tokenizer: The models' tokenizer, which knows the special tokens.
        """
        assert self.train_batch_size_tokens is not None  # the recipe filled it in
        excludes_own = self._excludes_own_special_tokens
        batch_size_prompts = self.eval_batch_size_prompts or self.store_batch_size_prompts
        return StoreConfig(
            sequence_format=self.sequence_format,
            batch_size_tokens=self.train_batch_size_tokens // self.n_data_shards,
            batch_size_prompts=self.store_batch_size_prompts,
            buffer_tokens=self.buffer_tokens // self.n_data_shards,
            mix_fraction=self.activations_mixing_fraction,
            dtype=self.dtype,
            buffer_dtype=self.buffer_dtype,
            device=self.act_store_device or self.device,
            seed=self.seed,
            excluded_tokens=excluded_token_ids(False if excludes_own else self.exclude_special_tokens, tokenizer),
            excludes_special_tokens=excludes_own,
            max_norm_multiple=self.max_activation_norm_multiple,
            n_eval_sequences=-(-self.n_eval_batches * batch_size_prompts // self.n_data_shards),
            n_shards=self.n_data_shards,
            seqpos_slice=self.seqpos_slice,
            autocast_lm=self.autocast_lm,
            cached_activations_path=self.cached_activations_path if self.use_cached_activations else None,
            patience=self.patience,
            n_ahead_prompts=int(self.prefetch_llm_batches or 0) * self.store_batch_size_prompts,
        )

    @override
    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-serialisable, and the version of their layout (`training/versions.py`)."""
        sources = [source.to_dict() for source in self.joint_sources]
        return {CONFIG.key: CONFIG.version, **super().to_dict(), "sources": sources}

    @classmethod
    @override
    def from_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, cfg_dict: Mapping[str, Any], new_run: bool = False
    ) -> CrosscoderRunnerConfig[Any]:
        """The configuration that a mapping describes, as `to_dict` or a configuration file gives it.

        Args:
            cfg_dict: The fields.
            new_run: Whether a unique id is appended to `checkpoint_path`, as SAELens does for a new run, or the path is
                that of an earlier run and taken as it is.

        Raises:
            ConfigError: An unknown field or architecture; the message suggests the nearest one. Or a later version of
                this package wrote it.
        """
        values = migrated_config(cfg_dict)
        sae = values.pop("sae", None)
        if not isinstance(sae, Mapping) or "architecture" not in sae:
            raise ConfigError(
                "The configuration needs `sae` with its `architecture`, such as sae: {architecture: "
                "batchtopk_crosscoder, d_in: 4608, d_sae: 16384}."
            )
        for name in ("lr_end", "llm_device", "act_store_device"):
            if values.get(name) == "None":  # SAELens writes str(None)
                values[name] = None
        for name in ("sources", "datasets"):
            if values.get(name) is None:
                values.pop(name, None)
        logger = checked_fields(LoggingConfig, values.pop("logger", None) or {}, "logger", ConfigError)
        whole = {**values, "sae": sae_config(cast("Mapping[str, Any]", sae)), "logger": LoggingConfig(**logger)}
        checked_elsewhere = ("sae", "logger", "sources", "datasets")
        cfg = cls(**checked_fields(cls, whole, "The configuration", ConfigError, checked_elsewhere))
        if "checkpoint_path" in values and not new_run:
            # SAELens appends a unique id on construction; a path that is read back has it already.
            cfg.checkpoint_path = values["checkpoint_path"]
        return cfg

    @classmethod
    def from_file(cls, path: str | Path) -> CrosscoderRunnerConfig[Any]:
        """Read a configuration from a JSON or YAML file.

        Raises:
            NotFoundError: There is no such file.
            ConfigError: It cannot be parsed, or a field is unknown.
        """
        return cls.from_dict(read_config_file(path), new_run=True)

    def _dataset_entries(self) -> list[DatasetConfig]:
        if isinstance(self.datasets, (str, Mapping)) or not isinstance(self.datasets, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"datasets must be a list with one mapping a data set, not {self.datasets!r}.")
        return [d if isinstance(d, DatasetConfig) else DatasetConfig.from_dict(d) for d in self.datasets]

    def _fill_in_model(self, joint: Sources) -> None:
        """Set what SAELens's fields say of the one model, after checking that the user did not mean to set it."""
        given = {f.name: f.default for f in dataclasses.fields(LanguageModelSAERunnerConfig)}
        ours: dict[str, Any] = {
            "model_name": joint.model_name,
            "model_class_name": "JointModel",
            "model_from_pretrained_kwargs": {},
            "hook_name": JOINT_HOOK_NAME,
        }
        for name, value in ours.items():
            if getattr(self, name) not in (given[name], value):
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} would have no effect: a run on several models reads it from each "
                    "source. Set it there."
                )
            setattr(self, name, value)
        if self.model_kwargs:
            raise ConfigError(f"model_kwargs={self.model_kwargs!r} is not supported for several models.")

    def _check_fields(self, joint: Sources) -> None:
        sae = self.sae
        if isinstance(sae, TrainingCrosscoderConfig):
            if len(joint) < 2:
                raise ConfigError(
                    f"A crosscoder needs at least two sources, but there is only {joint.labels[0]!r}. Add the second "
                    "model (or layer), or train a SAELens SAE on the one."
                )
            if joint.combine == "difference":
                raise ConfigError(
                    f"combine='difference' leaves one activation, so that {sae.architecture()} has no sources to "
                    "compare. Train a SAELens architecture on it, such as BatchTopKTrainingSAEConfig, or concatenate."
                )
            if not sae.source_widths:
                sae.source_widths = joint.widths
            if sae.source_widths != joint.widths:
                raise ShapeError(f"sae.source_widths={sae.source_widths}, but the sources are {joint.widths} wide.")
            if sae.d_in == joint.d_in:
                sae.check_sources()
        if sae.d_in != joint.d_in:
            widths = ", ".join(f"{s.label}: {s.d_in}" for s in joint)
            raise ShapeError(
                f"sae.d_in={sae.d_in}, but the joint activations ({joint.combine} of {widths}) are {joint.d_in} wide. "
                f"Set d_in={joint.d_in}."
            )
        if self.datasets and self.dataset_path:
            raise ConfigError(
                f"Both dataset_path={self.dataset_path!r} and datasets are given. Move the first into datasets, with a "
                "weight."
            )
        check_values(self)
        if self.hook_head_index is not None:
            raise ConfigError("hook_head_index is not defined for several sources. Read hook_z whole instead.")
        if self.training_tokens < 1:
            raise ConfigError(f"training_tokens={self.training_tokens} must be positive.")

    def _check_cache(self, joint: Sources) -> None:
        # Refused here, before models are loaded.
        path, excludes_own = str(self.cached_activations_path), self._excludes_own_special_tokens
        origin = origin_of(joint, self.dataset_configs, self.sequence_format, self.autocast_lm, excludes_own)
        CacheDescription.load(path).check_readable(path, origin, 0)

    def _fill_in_recipe(self) -> None:
        recipe = recipe_for(self.sae.architecture())
        if self.train_batch_size_tokens is None:
            self.train_batch_size_tokens = recipe.train_batch_size_tokens
        n_steps = self.training_tokens // self.train_batch_size_tokens
        if n_steps < 1:
            raise ConfigError(
                f"training_tokens={self.training_tokens} is less than a batch of {self.train_batch_size_tokens} tokens "
                "(train_batch_size_tokens): no step would be made."
            )
        self.lr = recipe.lr if self.lr is None else self.lr
        if self.lr_warm_up_steps is None:
            self.lr_warm_up_steps = min(recipe.lr_warm_up_steps, n_steps // 10)
        if self.lr_decay_steps is None:
            self.lr_decay_steps = int(recipe.lr_decay_share * n_steps)
        if self.dead_feature_window is None:
            self.dead_feature_window = max(1, recipe.dead_after_tokens // self.train_batch_size_tokens)
        if isinstance(self.sae, TrainingCrosscoderConfig):
            # A parent's penalty is in force already: it does not rise from 0 again.
            self.sae.fill_in_schedule(n_steps if self.from_pretrained_path is None else 0)
            self.sae.check_batch_size(self.train_batch_size_tokens)
        check_data_shards(self.n_data_shards, self.train_batch_size_tokens, self.use_cached_activations)
