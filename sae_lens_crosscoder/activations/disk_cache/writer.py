"""Writing a cache, by one process or by several that each write shards of their own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from datasets import IterableDataset
from sae_lens import logger
from torch import Tensor

from sae_lens_crosscoder._saelens import str_to_dtype
from sae_lens_crosscoder.activations.disk_cache.description import CacheDescription, n_bytes_a_sequence
from sae_lens_crosscoder.activations.disk_cache.shards import (
    Manifest,
    finished,
    is_whole,
    manifest_path,
    write_shard,
)
from sae_lens_crosscoder.activations.store import PairedActivationsStore
from sae_lens_crosscoder.errors import ConfigError, SaveError
from sae_lens_crosscoder.files import remove_leftovers
from sae_lens_crosscoder.progress import token_bar
from sae_lens_crosscoder.resources import free_disk

CACHE_DTYPES = ("float32", "float64", "bfloat16", "float16")
_GB = 1e9
_IDLE_SECONDS = 3600  # a shard that another writer is at is written to far more often


@dataclass(frozen=True)
class CacheRequest:
    """How much is written, and by whom.

    Raises:
        ConfigError: No tokens, an unknown dtype, or a rank that is none of `world_size`.
    """

    n_tokens: int
    """Tokens of text that are read, those among them that training drops (BOS and special tokens)."""

    dtype: str = "bfloat16"
    """Dtype of the activations on disk."""

    rank: int = 0
    """Which of the writers this is, from 0."""

    world_size: int = 1
    """Writers that share the work: each runs the models on its part of the shards. All read the whole text."""

    shard_bytes: int = 1 << 28
    """Size of a shard. Writing takes twice that of memory."""

    def __post_init__(self) -> None:
        if self.dtype not in CACHE_DTYPES:
            raise ConfigError(f"dtype={self.dtype!r} is unknown. Use one of {', '.join(CACHE_DTYPES)}.")
        if self.n_tokens < 1:
            raise ConfigError(f"A cache of {self.n_tokens} tokens holds nothing. Give a positive number.")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"rank={self.rank} is none of {self.world_size} writers. Give each of them one of the ranks from 0 to "
                f"{self.world_size - 1}."
            )


def describe_cache(store: PairedActivationsStore, request: CacheRequest) -> CacheDescription:
    """What a cache of the store's activations would be made of, and how large it would be."""
    context_size, n_prompts = store.cfg.sequence_format.context_size, store.cfg.batch_size_prompts
    n_bytes = n_bytes_a_sequence(store.model.sources, context_size, request.dtype)
    return CacheDescription(
        origin=store.origin,
        seed=store.cfg.seed,
        n_eval_sequences=store.cfg.n_eval_sequences,
        dtype=request.dtype,
        n_sequences=-(-request.n_tokens // context_size),
        # Whole forward passes, so that a reader can read as many sequences at once as the writer did.
        n_sequences_a_shard=max(1, request.shard_bytes // (n_bytes * n_prompts)) * n_prompts,
        n_bytes_a_sequence=n_bytes,
    )


def write_cache(store: PairedActivationsStore, folder: str | Path, request: CacheRequest) -> CacheDescription:
    """Write this writer's share of the shards that are not yet finished; returns what the cache is made of.

    Shard i holds the same sequences whoever writes it, so a cache that several writers made is that of one, and a
    writer that was stopped goes on when it is called again. The number of writers may change in between. What a killed
    writer left half-written is removed: at once if there is one writer, after an hour if there are several.

    Raises:
        SaveError: The disk has not the room for what is missing, or refused a write.
        ConfigError: The folder holds a cache of something else; the message names the fields.
    """
    place = Path(folder)
    description = describe_cache(store, request)
    description.check_continues(place)
    done = {entry.number for entry in finished(place, description.fingerprint).shards if is_whole(place, entry)}
    remove_leftovers(place, 0 if request.world_size == 1 else _IDLE_SECONDS)
    _check_room(place, description, len(done))
    description.save(place)
    manifest_file = manifest_path(place, request.rank)
    manifest = Manifest.load(manifest_file) if manifest_file.is_file() else Manifest(description.fingerprint)
    manifest.shards = [entry for entry in manifest.shards if entry.number in done]

    def finish(number: int, tensors: dict[str, Tensor]) -> None:
        manifest.shards.append(write_shard(place, number, tensors))
        manifest.save(manifest_file)

    n_read, context_size = 0, store.cfg.sequence_format.context_size
    with ThreadPoolExecutor(1) as pool, token_bar("Caching", description.n_sequences * context_size) as bar:
        # A shard is written while the next one is harvested, so at most two are in memory.
        writing: Future[None] | None = None
        for number, passes in enumerate(_shards(store, description)):
            n_read += sum(len(tokens) for tokens, _ in passes)
            if number % request.world_size == request.rank and number not in done:
                tensors = _harvested(store, passes, str_to_dtype(description.dtype))
                if writing is not None:
                    writing.result()
                writing = pool.submit(finish, number, tensors)
            bar.update(n_read * context_size - bar.n)
        if writing is not None:
            writing.result()
    if n_read < description.n_sequences:
        logger.info("The data ended after %d sequences, of %d that were asked for", n_read, description.n_sequences)
        manifest.ended_at_sequence = n_read
    manifest.save(manifest_file)
    return description


def _check_room(folder: Path, description: CacheDescription, n_done: int) -> None:
    n_missing = max(0, description.n_sequences - n_done * description.n_sequences_a_shard)
    needed = n_missing * description.n_bytes_a_sequence
    free = free_disk(folder)
    told = (
        f"{needed / _GB:,.3f} GB for {n_missing:,} sequences of {description.n_bytes_a_sequence:,} bytes "
        f"({description.dtype}); {free / _GB:,.3f} GB are free at {folder}"
    )
    if needed > free:
        raise SaveError(
            f"The cache does not fit on the disk: it needs {told}, room for {free // description.n_bytes_a_sequence:,} "
            "sequences. Lower --tokens, take a narrower dtype, or another folder."
        )
    logger.info("The cache needs %s", told)


_Pass = tuple[Tensor, Tensor]


def _shards(store: PairedActivationsStore, description: CacheDescription) -> Iterator[list[_Pass]]:
    """Token ids and data sets of the sequences of each shard, as the forward passes that they go through."""
    labels = {label: i for i, label in enumerate(store.dataset_labels)}
    n_prompts, n_left = store.cfg.batch_size_prompts, description.n_sequences
    shard: list[_Pass] = []
    for rows in cast(IterableDataset, store.dataset).iter(batch_size=n_prompts):
        values = cast("dict[str, list[Any]]", rows)
        tokens = torch.tensor(values["input_ids"][:n_left], dtype=torch.long)
        shard.append((tokens, torch.tensor([labels[label] for label in values["dataset"][:n_left]])))
        n_left -= len(tokens)
        if n_left == 0 or len(shard) * n_prompts == description.n_sequences_a_shard:
            yield shard
            shard = []
        if n_left == 0:
            return
    if shard:
        yield shard


@torch.no_grad()
def _harvested(store: PairedActivationsStore, passes: list[_Pass], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a shard."""
    n_positions = store.cfg.sequence_format.context_size
    capacity = sum(len(tokens) for tokens, _ in passes) * n_positions
    activations = torch.empty(capacity, store.model.sources.d_in, dtype=dtype)
    n_rows, end = list[Tensor](), 0
    for tokens, _ in passes:
        parts = [part.reshape(-1, part.shape[-1]) for part in store.harvest(tokens)]
        start, end = end, end + len(parts[0])
        torch.cat([part.to(device="cpu", dtype=dtype) for part in parts], dim=-1, out=activations[start:end])
        n_rows.append(store.model.n_places(tokens))
    return {
        "tokens": torch.cat([tokens for tokens, _ in passes]).to(torch.int32),
        "datasets": torch.cat([datasets for _, datasets in passes]).to(torch.int32),
        "n_rows": torch.cat(n_rows).to(torch.int32),
        "activations": activations[:end],
    }
