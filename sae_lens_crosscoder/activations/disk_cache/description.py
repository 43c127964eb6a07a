"""What a cache is made of and how it is cut, and whether a run may read it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sae_lens_crosscoder._saelens import str_to_dtype
from sae_lens_crosscoder.activations.datasets import DatasetConfig, SequenceFormat, mixture_weights
from sae_lens_crosscoder.errors import ConfigError, DataError, NotFoundError, first_line
from sae_lens_crosscoder.fields import checked_fields
from sae_lens_crosscoder.files import existing_folder, write_json
from sae_lens_crosscoder.fingerprint import fingerprint
from sae_lens_crosscoder.sources import Sources

DESCRIPTION_FILENAME = "cache.json"
_FORMAT = 1
_OF_A_SOURCE = ("model_name", "model_class_name", "model_from_pretrained_kwargs", "hook_name", "d_in")
_OF_A_DATASET = ("path", "name", "split", "data_files", "kind", "column", "chat_template")


def origin_of(
    sources: Sources,
    datasets: Sequence[DatasetConfig],
    sequence_format: SequenceFormat,
    autocast_lm: bool,
    excludes_special_tokens: bool,
) -> dict[str, Any]:
    """All that activations depend on, as JSON: models and hooks, data sets and how they become sequences.

    What a run does with activations when it reads them (excluded tokens, outliers, positions, shuffling) is no part.
    """
    return {
        "sources": [{name: getattr(source, name) for name in _OF_A_SOURCE} for source in sources],
        "combine": sources.combine,
        "token_alignment": sources.token_alignment,
        "datasets": [
            {**{name: getattr(config, name) for name in _OF_A_DATASET}, "share": share}
            for config, share in zip(datasets, mixture_weights(datasets), strict=True)
        ],
        "sequences": dataclasses.asdict(sequence_format),
        "excludes_special_tokens": excludes_special_tokens,
        "autocast_lm": autocast_lm,
    }


@dataclass(frozen=True)
class CacheDescription:
    """What `cache.json` says."""

    origin: dict[str, Any]
    """What the activations depend on (`origin_of`), and a checksum of the first sequence of each data set."""

    seed: int
    """Seed of the mixture."""

    n_eval_sequences: int
    """Sequences at the head of each data set that are not in the cache."""

    dtype: str
    """Dtype of the activations."""

    n_sequences: int
    """Sequences of the whole cache; fewer if the data end earlier."""

    n_sequences_a_shard: int
    """Sequences of a shard; the last may have fewer."""

    n_bytes_a_sequence: int
    """What a sequence takes on disk at most."""

    @property
    def n_shards(self) -> int:
        """Shards of the whole cache."""
        return -(-self.n_sequences // self.n_sequences_a_shard)

    @property
    def fingerprint(self) -> str:
        """A short name for all of it."""
        return fingerprint(dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: str | Path) -> CacheDescription:
        """The description in a cache's folder.

        Raises:
            NotFoundError: There is no such folder, or it is no cache.
            ConfigError: It was written by SAELens, or by another version of this package.
            DataError: It cannot be read.
        """
        path = existing_folder(folder, "cache of activations") / DESCRIPTION_FILENAME
        make = "Make one with `sae-lens-crosscoder cache CONFIG --out DIR`."
        if (path.parent / "dataset_info.json").is_file():
            raise ConfigError(
                f"{folder} was written by SAELens's CacheActivationsRunner, which reads one model, not a joint one. "
                f"{make}"
            )
        if not path.is_file():
            raise NotFoundError(f"{folder} is no cache of activations: it has no {DESCRIPTION_FILENAME}. {make}")
        try:
            values = json.loads(path.read_text())
            version = values.pop("format")
            if version != _FORMAT:
                raise ConfigError(f"{path} has format {version!r}, this version reads {_FORMAT}. {make}")
            description = cls(**checked_fields(cls, values, "It", DataError))
            if min(description.n_sequences, description.n_sequences_a_shard, description.n_bytes_a_sequence) < 1:
                raise DataError("Sequences and bytes have to be positive.")
            return description
        except ConfigError:
            raise
        except (ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
            raise DataError(f"{path} is damaged: {first_line(error)}. {make}") from error

    def check_continues(self, folder: Path) -> None:
        """Whether a writer of this cache may write to a folder: one that holds none, or part of the same.

        Raises:
            ConfigError: It holds a cache of something else; the message names the fields.
        """
        if (folder / DESCRIPTION_FILENAME).is_file():
            there = dataclasses.asdict(CacheDescription.load(folder))
            advice = "Call it as the cache was begun, or with another --out."
            _raise_if_different(folder, there, dataclasses.asdict(self), "this command", advice)

    def save(self, folder: Path) -> None:
        """Write `cache.json`; of writers that begin at once with different ones, readers refuse all but the last."""
        write_json(folder / DESCRIPTION_FILENAME, {"format": _FORMAT, **dataclasses.asdict(self)})

    def check_readable(self, folder: str | Path, origin: Mapping[str, Any], n_eval_sequences: int) -> None:
        """Whether a run may train on the cache.

        Args:
            folder: The cache.
            origin: What the run's activations depend on, or some fields of it.
            n_eval_sequences: What the run holds out.

        Raises:
            ConfigError: The cache was made of something else, or holds what the run evaluates on.
        """
        made = {name: self.origin.get(name) for name in origin}
        advice = "Train with what the cache was made of, or make a cache for this run."
        _raise_if_different(folder, made, origin, "this run", advice)
        if n_eval_sequences > self.n_eval_sequences:
            raise ConfigError(
                f"The run evaluates on the first {n_eval_sequences} sequences of each data set, but the cache {folder} "
                f"leaves out only {self.n_eval_sequences}: it would train on what it is evaluated on. Lower "
                "n_eval_batches, or make a cache with this configuration."
            )


def n_bytes_a_sequence(sources: Sources, n_positions: int, dtype: str) -> int:
    """What a sequence takes on disk at most: its activations, and its tokens as 32-bit integers."""
    # Tokenizers that differ have a row of tokens each, of which there are at most as many as sources.
    n_rows_of_tokens = len(sources) if sources.token_alignment == "character_offsets" else 1
    return n_positions * sources.d_in * str_to_dtype(dtype).itemsize + 4 * n_positions * n_rows_of_tokens + 8


def _raise_if_different(
    folder: str | Path, made: Mapping[str, Any], wanted: Mapping[str, Any], who: str, advice: str
) -> None:
    ours, theirs = dict(_flat("", _as_json(wanted))), dict(_flat("", _as_json(made)))
    different = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
    if different:
        listed = "; ".join(f"{n} is {theirs.get(n)!r} in the cache, {who} has {ours.get(n)!r}" for n in different[:3])
        raise ConfigError(f"The activations in {folder} are others: {listed}. {advice}")


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of a JSON value, each with its path, such as ("sources.0.hook_name", ...)."""
    if isinstance(value, (dict, list)) and value:
        items: Any = enumerate(cast("list[Any]", value)) if isinstance(value, list) else value.items()
        for key, item in items:
            yield from _flat(f"{name}.{key}" if name else str(key), item)
    else:
        yield name, value
