"""The cache of activations against the file system: plain files of the same bytes, written and read in the same round.

`over_floor` is the time by that of the floor, as the median over rounds, which are in random order. The floor of
writing is one sequential write and fsync. The floor of reading is a sequential read into memory of files that the
system has cached, so it is that of memory: from a disk both wait for the disk. "first reading" compares every shard
with its checksum, further ones do not.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import median_ratio, parse_arguments, report, seconds
from harvest import CONTEXT, PROMPTS, make_model, paired_store
from safetensors.torch import load_file

from sae_lens_crosscoder.activations import CacheReader, CacheRequest, write_cache
from sae_lens_crosscoder.activations.disk_cache.shards import write_shard


class Files:
    """A cache of random activations, plain files of the same bytes, and ways to write and read both."""

    def __init__(self, folder: Path, n_shards: int) -> None:
        self.folder, self.plain, self.scratch = folder / "cache", folder / "plain", folder / "scratch"
        models = [make_model(1, 256, seed) for seed in range(2)]  # read at the embedding: the models cost nothing
        store = paired_store(models, "float32", 8 * PROMPTS * CONTEXT)
        # 16 MiB a shard, of 1 KiB a token.
        write_cache(store, self.folder, CacheRequest(n_shards * (1 << 14), shard_bytes=(1 << 24) + (1 << 18)))
        self.contents = [path.read_bytes() for path in sorted(self.folder.glob("shard-*"))]
        self.plain.mkdir()
        for i, content in enumerate(self.contents):
            (self.plain / str(i)).write_bytes(content)
        self.tensors = load_file(self.folder / "shard-000000.safetensors")
        self.buffer = torch.empty(PROMPTS * CONTEXT, 512)
        self.bytes = sum(map(len, self.contents))

    def emptied(self) -> Path:
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        return self.scratch

    def write_plain(self) -> None:
        folder = self.emptied()
        for i, content in enumerate(self.contents):
            with (folder / str(i)).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

    def write_shards(self) -> None:
        folder = self.emptied()
        for i in range(len(self.contents)):
            write_shard(folder, i, self.tensors)

    def read_plain(self) -> None:
        """Into memory, and as float32 into a buffer: what the store does with the activations that it reads."""
        rows = self.buffer.numel() * 2
        for i in range(len(self.contents)):
            with (self.plain / str(i)).open("rb", buffering=0) as file:
                memory = bytearray(rows)
                while file.readinto(memory) == rows:
                    self.buffer.copy_(torch.frombuffer(memory, dtype=torch.bfloat16).view_as(self.buffer))

    def reading(self, reader: CacheReader, epoch: int) -> None:
        reader.begin_epoch(epoch)
        while (block := reader.next_block()) is not None:
            self.buffer[: len(block.activations)].copy_(block.activations)

    def read_first(self) -> None:
        self.reading(CacheReader(self.folder, PROMPTS), 0)

    def read_again(self) -> Callable[[], None]:
        reader = CacheReader(self.folder, PROMPTS)
        self.reading(reader, 0)
        return lambda: self.reading(reader, 1)


def measure(n_rounds: int, n_shards: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder), n_shards)
        runs = {
            "plain write": files.write_plain,
            "shards written": files.write_shards,
            "plain read": files.read_plain,
            "first reading, with checksums": files.read_first,
            "further readings": files.read_again(),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(n_rounds):
            for name in random.sample(list(runs), len(runs)):
                times[name].append(seconds(runs[name]))
    floors = {name: "plain write" if "writ" in name else "plain read" for name in runs}
    rows = [
        {
            "name": name,
            "megabytes": round(files.bytes / 2**20),
            "megabytes_per_second": round(files.bytes / 2**20 / statistics.median(times[name])),
            "over_floor": median_ratio(times[name], times[floors[name]]),
        }
        for name in runs
    ]
    return rows


def main() -> None:
    options = parse_arguments(__doc__ or "")
    report(measure(n_rounds=5 if options.quick else 15, n_shards=4 if options.quick else 16), options)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
