"""The files of a cache: shards, and the manifests that say which of them are finished."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_lens_crosscoder.errors import DamagedError, DataError, first_line
from sae_lens_crosscoder.fields import checked_fields
from sae_lens_crosscoder.files import file_written_aside, write_json
from sae_lens_crosscoder.manifest import checksum


@dataclass(frozen=True)
class ShardEntry:
    """A finished shard, as a manifest has it."""

    number: int
    sha256: str
    n_bytes: int
    n_sequences: int


@dataclass
class Manifest:
    """The shards that one writer has finished."""

    fingerprint: str
    """Checksum of the description of the cache that they belong to."""

    shards: list[ShardEntry] = field(default_factory=list[ShardEntry])

    ended_at_sequence: int | None = None
    """Where the data ended, if that was before the cache was full."""

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            DataError: It is damaged.
        """
        try:
            values = json.loads(path.read_text())
            shards = [checked_fields(ShardEntry, entry, "An entry of shards", DataError) for entry in values["shards"]]
            values["shards"] = [ShardEntry(**entry) for entry in shards]
            return cls(**checked_fields(cls, values, "A manifest of shards", DataError))
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise DataError(f"{path} is damaged: {first_line(error)}. Delete it and run the writer again.") from error

    def save(self, path: Path) -> None:
        """Write the manifest aside, then into its place."""
        write_json(path, dataclasses.asdict(self))


def manifest_path(folder: Path, rank: int) -> Path:
    """Where the writer with this rank keeps its manifest."""
    return folder / f"manifest-{rank:05d}.json"


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard is."""
    return folder / f"shard-{number:06d}.safetensors"


def finished(folder: Path, fingerprint: str) -> Manifest:
    """What all writers together have finished so far.

    Raises:
        DataError: A manifest that is damaged, or that belongs to another cache.
    """
    shards: dict[int, ShardEntry] = {}
    ends: list[int] = []
    for path in sorted(folder.glob("manifest-*.json")):
        manifest = Manifest.load(path)
        if manifest.fingerprint != fingerprint:
            raise DataError(
                f"{path} belongs to a cache that was described otherwise than the one it lies in. Delete the folder "
                "and make the cache anew."
            )
        shards |= {entry.number: entry for entry in manifest.shards}
        ends += [] if manifest.ended_at_sequence is None else [manifest.ended_at_sequence]
    return Manifest(fingerprint, [shards[number] for number in sorted(shards)], min(ends, default=None))


def write_shard(folder: Path, number: int, tensors: Mapping[str, Tensor]) -> ShardEntry:
    """Write a shard aside, then into its place.

    Raises:
        SaveError: The system refused.
    """
    path = shard_path(folder, number)
    with file_written_aside(path) as aside:
        save_file(dict(tensors), aside)
        sha256, n_bytes = checksum(aside), aside.stat().st_size
    return ShardEntry(number, sha256, n_bytes, len(tensors["tokens"]))


def is_whole(folder: Path, entry: ShardEntry) -> bool:
    """Whether the shard is there and as long as it was written, without reading it."""
    path = shard_path(folder, entry.number)
    return path.is_file() and path.stat().st_size == entry.n_bytes


def check_shard(folder: Path, entry: ShardEntry) -> None:
    """Read a shard and compare it with its checksum.

    Raises:
        DamagedError: It is not what was written.
    """
    path = shard_path(folder, entry.number)
    if not path.is_file():
        fault = "is gone"
    elif path.stat().st_size != entry.n_bytes:
        fault = f"has {path.stat().st_size} bytes in place of {entry.n_bytes}"
    elif checksum(path) != entry.sha256:
        fault = "was changed: its checksum is not the one it was written with"
    else:
        return
    raise DamagedError(
        f"The cache's shard {path} {fault}. Delete what is left of it and run the `cache` command again as before: it "
        "makes the shards that are missing. --skip-bad-shards leaves it out."
    )


@dataclass(frozen=True)
class CacheBlock:
    """Successive sequences of one shard."""

    tokens: Int[Tensor, "n_sequences row"]
    """Token ids, or packed rows where each model reads tokens of its own."""

    datasets: Int[Tensor, " n_sequences"]
    """Which data set of the mixture each sequence is from."""

    activations: Float[Tensor, "n_rows d_in"]
    """Joint activations, those of all sequences one after the other: a view of the file, which is mapped to memory."""


def read_block(folder: Path, number: int, sequences: slice) -> CacheBlock:
    """Read sequences of a shard. Only the pages that are used are read from the disk.

    Raises:
        DataError: The shard holds fewer sequences than its manifest says.
    """
    with safe_open(shard_path(folder, number), framework="pt") as file:
        n_rows = file.get_tensor("n_rows").long()
        if sequences.stop > len(n_rows):
            raise DataError(
                f"{shard_path(folder, number)} has {len(n_rows)} sequences, its manifest says {sequences.stop} or "
                "more: the manifest was changed. Make the cache anew."
            )
        ends = n_rows.cumsum(0)
        first = int(ends[sequences.start] - n_rows[sequences.start])
        return CacheBlock(
            tokens=file.get_slice("tokens")[sequences].to(torch.long),
            datasets=file.get_slice("datasets")[sequences].to(torch.long),
            activations=file.get_slice("activations")[first : int(ends[sequences.stop - 1])],
        )
