"""The activation store: the same tokens through all models, their activations side by side, shuffled."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import torch
from datasets import IterableDataset
from jaxtyping import Float, Int
from sae_lens import ActivationsStore
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder._saelens import str_to_dtype
from sae_lens_crosscoder.activations.aligned_sequences import AlignedPacking, check_kept_shares
from sae_lens_crosscoder.activations.datasets import (
    DatasetConfig,
    mix,
    mixture_weights,
    packed_sequences,
)
from sae_lens_crosscoder.activations.disk_cache.description import origin_of
from sae_lens_crosscoder.activations.disk_cache.passes import CachedPasses
from sae_lens_crosscoder.activations.disk_cache.reader import CacheReader
from sae_lens_crosscoder.activations.epochs import Epochs, ended_sources
from sae_lens_crosscoder.activations.finite import check_finite
from sae_lens_crosscoder.activations.opening import Documents, first_sequences, open_documents
from sae_lens_crosscoder.activations.shuffle_buffer import ShuffleBuffer
from sae_lens_crosscoder.activations.steady_stream import steady
from sae_lens_crosscoder.activations.store_config import DescribesStore, StoreConfig
from sae_lens_crosscoder.activations.stream_care import StreamCare
from sae_lens_crosscoder.activations.token_ids import check_token_ids
from sae_lens_crosscoder.errors import ConfigError, DataError
from sae_lens_crosscoder.fingerprint import fingerprint
from sae_lens_crosscoder.joint_model import JOINT_HOOK_NAME, JointModel

_CACHED = "cached activations"
"""What the counts of epochs call a cache, of which sequences of all data sets are read."""


class PairedActivationsStore(ActivationsStore):
    """A SAELens `ActivationsStore` over a joint model: the same tokens through all models, one row a token.

    Where each model reads tokens of its own (`token_alignment="character_offsets"`) a sequence is the same text in the
    tokens of every model, and there is one row for each place where those of all models end together.

    Tokens in `excluded_tokens` (BOS and special tokens by default) are dropped, as are norm outliers on request. Each
    source's activations are written once, straight into a preallocated pool (`ShuffleBuffer`), and gathered once into
    a batch. The order of the batches is that of SAELens's store with the same data and random numbers. With
    `cfg.cached_activations_path` the same rows come from a cache on disk and the models do not run.

    Args:
        model: The joint model.
        documents: The data sets, opened, in the order of `datasets`.
        datasets: What each data set is and its share.
        cfg: How activations are harvested, dropped and shuffled.

    Raises:
        DataError: A data set that is empty or too small for one forward pass and the held-out sequences, or tokenizers
            whose tokens hardly ever end together.
        ConfigError: Weights that do not add up, a buffer that is smaller than a batch, or what only models that read
            the same ids can do.
    """

    model: JointModel  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        model: JointModel,
        documents: Sequence[Documents],
        datasets: Sequence[DatasetConfig],
        cfg: StoreConfig,
    ) -> None:
        weights = mixture_weights(datasets)
        self.care = StreamCare(cfg.patience)
        """How its streams are cared for, and which of their shards were left out."""
        documents = [
            steady(data, config.title, self.care, cfg.shard, cfg.n_shards)
            for data, config in zip(documents, datasets, strict=True)
        ]
        seed = cfg.seed + cfg.shard
        pack_texts, row_length = None, cfg.sequence_format.context_size
        if model.aligner is not None:
            cfg.check_for_own_tokens()
            pack_texts = AlignedPacking(model.aligner, cfg.sequence_format, cfg.excludes_special_tokens).rows
            row_length *= len(model.aligner.tokenizers)
        packed = [
            packed_sequences(data, config, model.tokenizer, cfg.sequence_format, pack_texts)
            for data, config in zip(documents, datasets, strict=True)
        ]
        self.dataset_labels = [config.title for config in datasets]
        self.dataset_weights = weights
        heads = {
            config.title: first_sequences(stream, config.title, cfg)
            for stream, config in zip(packed, datasets, strict=True)
        }
        self.kept_shares = {
            label: sum(w * model.kept_shares(head)[label] for w, head in zip(weights, heads.values(), strict=True))
            for label in model.sources.labels
        }
        """For each source the share of the text's tokens that give a row, in the first sequences of the data."""
        if model.aligner is not None:
            check_kept_shares(self.kept_shares)
        self.eval_sequences: dict[str, Int[Tensor, "n_sequences row"]] = {
            title: head[: cfg.n_eval_sequences] for title, head in heads.items()
        }
        origin = origin_of(model.sources, datasets, cfg.sequence_format, cfg.autocast_lm, cfg.excludes_special_tokens)
        self.origin = origin | {"first_sequences": [fingerprint({}, [head[0]]) for head in heads.values()]}
        """What the activations depend on, as JSON."""
        reader = None
        if cfg.cached_activations_path is not None:
            reader = CacheReader(cfg.cached_activations_path, cfg.batch_size_prompts, cfg.seed, care=self.care)
            reader.description.check_readable(reader.folder, self.origin, cfg.n_eval_sequences)
        training = [stream.skip(cfg.n_eval_sequences) for stream in packed] if cfg.n_eval_sequences else packed
        with warnings.catch_warnings():
            # The mixture is tokenized by now; SAELens's advice to pre-tokenize does not apply to it.
            warnings.filterwarnings("ignore", message="pretokenized dataset has context_size")
            super().__init__(
                model=model,
                dataset=mix(training, weights, seed),
                streaming=True,
                hook_name=JOINT_HOOK_NAME,
                hook_head_index=None,
                context_size=row_length,
                d_in=model.sources.d_in,
                n_batches_in_buffer=max(1, cfg.buffer_tokens // cfg.sequence_format.context_size),
                total_training_tokens=0,
                store_batch_size_prompts=cfg.batch_size_prompts,
                train_batch_size_tokens=cfg.batch_size_tokens,
                prepend_bos=cfg.sequence_format.prepend_bos,
                normalize_activations="none",
                device=torch.device(cfg.device),
                dtype=cfg.dtype,
                seqpos_slice=cfg.seqpos_slice,
                autocast_lm=cfg.autocast_lm,
                exclude_special_tokens=_excluded(cfg),
                activations_mixing_fraction=cfg.mix_fraction,
            )
        self.cfg = cfg
        self._cache = None if reader is None else CachedPasses(reader, model, self.harvest, cfg.autocast_lm)
        self.generator = torch.Generator().manual_seed(seed)
        self.epochs = Epochs(
            [_CACHED] if self._cache is not None else self.dataset_labels, cfg.sequence_format.context_size
        )
        """How often the data were read."""
        self.n_batches_served = 0
        self.n_epochs_finished = 0
        self._n_rows_in_epoch = 0
        self._returned: Tensor | None = None
        self._read_state: dict[str, Any] | None = None  # after the last whole pass; None at the very beginning

    @classmethod
    @override
    def from_config(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        model: JointModel,
        cfg: DescribesStore,
        override_dataset: Documents | Mapping[str, Documents] | None = None,
        shard: int = 0,
    ) -> PairedActivationsStore:
        """The store that a runner configuration describes.

        Args:
            model: The joint model.
            cfg: The run's configuration.
            override_dataset: Data sets in memory: one, or one for each label of `cfg.datasets`.
            shard: Which part of the documents it reads, if they are divided.

        Raises:
            ConfigError: Labels of `override_dataset` that are not those of `cfg.datasets`.
        """
        own = replace(cfg.store_config(model.tokenizer), shard=shard)
        datasets, documents = open_documents(cfg.dataset_configs, override_dataset, StreamCare(own.patience))
        return cls(model, documents, datasets, own)

    def harvest(self, tokens: Int[Tensor, "batch pos"]) -> list[Float[Tensor, "*rows _d_part"]]:
        """Activations of the tokens, one tensor for each part of the joint activation, not yet concatenated."""
        with torch.autocast(self.model.cfg.device.type, dtype=torch.bfloat16, enabled=self.autocast_lm):
            activations = self.model.source_activations(tokens)
            if self.model.sources.combine == "difference":
                return [self.model.join(activations)]
            return activations

    @override
    @torch.no_grad()
    def get_activations(self, batch_tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "*rows d_in"]:
        """The joint activations of the tokens, in the dtype of the models."""
        joined = torch.cat([part.to(self.device) for part in self.harvest(batch_tokens)], dim=-1)
        return joined if joined.ndim == 2 else joined[:, slice(*self.seqpos_slice)]

    @override
    @torch.no_grad()
    def get_data_loader(self) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Endless stream of shuffled training batches."""
        while True:
            if self._returned is not None:
                batch, self._returned = self._returned, None
            else:
                while not self.buffer.is_ready:
                    self.add_pass()
                batch = self.buffer.next_batch(self.dtype)
            self.n_batches_served += 1
            yield batch

    def put_back(self, batch: Float[Tensor, "batch d_in"]) -> None:
        """Take back the batch that was served last: it is the next one, also after a resume."""
        self._returned = batch
        self.n_batches_served -= 1

    @torch.no_grad()
    def add_pass(self) -> None:
        """Add the rows of one forward pass, or as much of the cache, to the buffer, without tokens that are dropped.

        The data begin anew when they end. If it fails, nothing was read: the same sequences come again.

        Raises:
            DataError: All tokens are dropped, data or cache are damaged or of other models, or a stream broke for good.
            NonFiniteError: Activations that are infinite or not a number.
            ConfigError: The cache holds activations of other models.
            WaitStopped: The run was asked to stop while a stream or the cache was waited for.
        """
        before = (self.n_epochs_finished, self.n_dataset_processed, self._n_rows_in_epoch, self.epochs.state_dict())
        try:
            tokens, parts = self._next_pass()
            if self.model.aligner is None:
                positions = slice(*self.seqpos_slice)
                parts = [part[:, positions].reshape(-1, part.shape[-1]) for part in parts]
                tokens = tokens[:, positions]
            keep = self._kept_rows(tokens, parts)
            if keep is not None:
                parts = [part.index_select(0, keep.to(part.device)) for part in parts]
            self.buffer.add(parts)
        except BaseException:
            n_epochs, self.n_dataset_processed, self._n_rows_in_epoch, epochs = before
            self.epochs.load_state_dict(epochs)
            self._go_to(n_epochs, self._read_state)
            raise
        self._n_rows_in_epoch += len(parts[0])
        self._read_state = self._reads.state_dict()
        ends = ended_sources(self._read_state)
        self.epochs.ended([label for label, has_ended in zip(self.dataset_labels, ends, strict=False) if has_ended])

    @property
    def _reads(self) -> CachedPasses | IterableDataset:
        """What has the position in the data."""
        return self._cache if self._cache is not None else cast(IterableDataset, self.dataset)

    def _go_to(self, n_epochs_finished: int, state: dict[str, Any] | None) -> None:
        """Read on at a position of an epoch."""
        self._begin_epoch(n_epochs_finished)
        self._read_state = state
        if self._cache is None:
            cast(Any, self.dataset).load_state_dict(state)
            self.iterable_sequences = self._iterate_tokenized_sequences()
        elif state is not None:
            self._cache.load_state_dict(state)

    @override
    def _iterate_raw_dataset(self) -> Iterator[list[int]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        for row in cast(Any, self.dataset):
            self.n_dataset_processed += 1
            self.epochs.add(row["dataset"])
            yield row[self.tokens_column]

    def _next_pass(self) -> tuple[Tensor, list[Float[Tensor, "*rows _d_part"]]]:
        """Tokens and their activations."""
        if self._cache is not None:
            found = self._cache.next_pass()
            if found is None:
                self._end_epoch()
                found = self._cache.next_pass()
                assert found is not None  # the epoch that ended had rows
            self.n_dataset_processed += len(found[0])
            self.epochs.add(_CACHED, len(found[0]))
            return found
        try:
            tokens = self.get_batch_tokens(raise_at_epoch_end=True, move_to_model_device=False)
        except StopIteration:
            self._end_epoch()
            tokens = self.get_batch_tokens(move_to_model_device=False)
        check_token_ids(tokens, self.model)
        return tokens, self.harvest(tokens)

    def _end_epoch(self) -> None:
        """Note that all data was read once; raises if nothing of it was kept, which would go on for ever."""
        if self._n_rows_in_epoch == 0:
            raise DataError(
                "All tokens of the data were dropped: every one is excluded (exclude_special_tokens), above the norm "
                "limit (max_activation_norm_multiple), or in a shard that was left out (skip_bad_shards). There is "
                "nothing to train on."
            )
        self._n_rows_in_epoch = 0
        self._begin_epoch(self.n_epochs_finished + 1)
        self.epochs.all_ended()

    def _begin_epoch(self, n_epochs_finished: int) -> None:
        self.n_epochs_finished = n_epochs_finished
        if self._cache is not None:
            self._cache.begin_epoch(n_epochs_finished)
        else:
            # A data set whose position was loaded begins there in the epoch of that position, and anew in every other.
            cast(IterableDataset, self.dataset).set_epoch(n_epochs_finished)

    def _kept_rows(self, tokens: Int[Tensor, "batch pos"], parts: Sequence[Tensor]) -> Int[Tensor, " n_kept"] | None:
        """The rows that stay; None if all do."""
        keep = torch.ones(len(parts[0]), dtype=torch.bool)
        if self.exclude_special_tokens is not None:
            keep &= ~torch.isin(tokens.reshape(-1).cpu(), self.exclude_special_tokens.cpu())
        check_finite(parts, keep, tokens, self.model.sources)
        if self.cfg.max_norm_multiple is not None:
            for part in parts:
                norms = part.float().norm(dim=-1).cpu()
                keep &= norms <= self.cfg.max_norm_multiple * norms[keep].median()
        return None if bool(keep.all()) else keep.nonzero().flatten()

    @cached_property
    def buffer(self) -> ShuffleBuffer:
        """The shuffle buffer; its memory is taken when it is first used."""
        n_positions = len(range(self.cfg.sequence_format.context_size)[slice(*self.seqpos_slice)])
        return ShuffleBuffer(
            n_tokens=self.cfg.buffer_tokens,
            n_added_tokens=self.cfg.batch_size_prompts * n_positions,
            d_in=self.d_in,
            batch_size=self.train_batch_size_tokens,
            mix_fraction=self.activations_mixing_fraction,
            dtype=str_to_dtype(self.cfg.buffer_dtype or self.cfg.dtype),
            device=self.device,
            generator=self.generator,
            n_ahead_tokens=self.cfg.n_ahead_prompts * n_positions,
        )

    @override
    def save(self, file_path: str) -> None:
        """Save the position in the data, the buffer and the random numbers, so that a run goes on as if unbroken.

        Args:
            file_path: A safetensors file.
        """
        tensors = {
            **self.buffer.state_dict(),
            **super().state_dict(),
            "generator_state": self.generator.get_state(),
            "n_batches_served": torch.tensor(self.n_batches_served),
            "n_epochs_finished": torch.tensor(self.n_epochs_finished),
            "n_rows_in_epoch": torch.tensor(self._n_rows_in_epoch),
        }
        if self._returned is not None:
            tensors["returned_batch"] = self._returned
        position = {
            "of_cache": self._cache is not None,
            "state": self._read_state,
            "epochs": self.epochs.state_dict(),
            "skipped_shards": self.care.skipped,
        }
        save_file(tensors, file_path, metadata={"position": json.dumps(position)})

    @override
    def load(self, file_path: str) -> None:
        """Go on where `save` stopped.

        Raises:
            ConfigError: The file is not that of a `PairedActivationsStore`, or of one with another buffer or cache.
        """
        with safe_open(file_path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "position" not in metadata:
                raise ConfigError(
                    f"{file_path} was not written by a PairedActivationsStore: it has no position in the data. Resume "
                    "from a checkpoint of CrosscoderTrainingRunner."
                )
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        position = json.loads(metadata["position"])
        if position["of_cache"] != (self._cache is not None):
            before, now = ("a cache", "the models") if position["of_cache"] else ("the models", "a cache")
            raise ConfigError(
                f"The checkpoint's activations came from {before}, this run's come from {now}. Resume with the "
                "checkpoint's use_cached_activations and cached_activations_path."
            )
        self.buffer.load_state_dict(state)
        self.generator.set_state(state["generator_state"])
        self.n_dataset_processed = int(state["n_dataset_processed"])
        self.n_batches_served = int(state["n_batches_served"])
        self._n_rows_in_epoch = int(state["n_rows_in_epoch"])
        self._returned = state["returned_batch"].to(self.device) if "returned_batch" in state else None
        self.epochs.load_state_dict(position["epochs"])
        self.care.skipped[:] = position["skipped_shards"]
        self._go_to(int(state["n_epochs_finished"]), position["state"])
        self._dataloader = None


def _excluded(cfg: StoreConfig) -> Tensor | None:
    return torch.tensor(cfg.excluded_tokens, dtype=torch.long, device=cfg.device) if cfg.excluded_tokens else None
