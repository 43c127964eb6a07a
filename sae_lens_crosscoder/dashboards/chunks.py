"""Latents in chunks: which are finished in a folder, which are to be made, and the activations that they share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sae_lens_crosscoder.dashboards.subject import DashboardConfig, DashboardSubject
from sae_lens_crosscoder.doctor import installed_version
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.files import check_writable, remove_leftovers, write_json
from sae_lens_crosscoder.resources import free_disk

_ENTRY = ("latents", "files", "is_finished", "record")


def chunked(subject: DashboardSubject, latents: Sequence[int], config: DashboardConfig) -> list[list[int]]:
    """The latents in the given order, `n_latents_per_page` at a time; a latent that is named twice stands once.

    Raises:
        ConfigError: No latents, or some that the crosscoder does not have.
    """
    d_sae = len(subject.sae.W_dec)
    missing = [latent for latent in latents if not 0 <= latent < d_sae]
    if missing or not latents:
        raise ConfigError(
            f"Of {len(latents)} latents {len(missing)} are not there {missing[:5]}: name some from 0 to {d_sae - 1}."
        )
    once, size = list(dict.fromkeys(latents)), config.n_latents_per_page
    return [once[start : start + size] for start in range(0, len(once), size)]


class ChunkFolder:
    """An output folder with a list of its chunks, so that a stopped call goes on where it was.

    Chunks that were made of something else or by another version, or that hold other latents, are removed first,
    finished or not: a folder never mixes two.

    Args:
        manifest: The file with the list; its folder holds the chunks.
        key: What the chunks are made of; another key, other chunks.
        chunks: The latents of each chunk.
        files: Names of each chunk's files in the folder.
    """

    def __init__(
        self, manifest: Path, key: Sequence[Any], chunks: Sequence[list[int]], files: Sequence[Sequence[str]]
    ) -> None:
        check_writable(manifest.parent)
        self.chunks = chunks
        self.files = files
        self._manifest = manifest
        self._key = json.loads(json.dumps([*key, _versions()], default=str))
        self._finished: dict[int, Any] = {}
        self._take_over()

    @property
    def pending(self) -> list[int]:
        """Numbers of the chunks that are to be made."""
        return [i for i in range(len(self.chunks)) if i not in self._finished]

    @property
    def records(self) -> list[Any]:
        """What `finish` noted of the finished chunks, in order."""
        return [record for _, record in sorted(self._finished.items())]

    def progress(self, title: str) -> Iterator[int]:
        """The numbers of the pending chunks, with a bar that counts latents."""
        with tqdm(total=sum(map(len, self.chunks)), desc=title, unit=" latents") as bar:
            bar.update(sum(len(chunk) for i, chunk in enumerate(self.chunks) if i in self._finished))
            for i in self.pending:
                yield i
                bar.update(len(self.chunks[i]))

    def finish(self, i: int, record: Any = None) -> None:
        """Note that a chunk's files are written."""
        self._finished[i] = record
        self._write()

    def _take_over(self) -> None:
        """Keep the finished chunks that are wanted; remove the files of the others, and what a killed process left."""
        made_of, entries = self._listed()
        folder = self._manifest.parent
        for place in {(folder / file).parent for files in self.files for file in files}:
            remove_leftovers(place)
        for i, entry in entries.items():
            paths = [folder / file for file in entry["files"]]
            fits = made_of == self._key and i < len(self.chunks) and entry["latents"] == self.chunks[i]
            if fits and entry["is_finished"] and all(path.is_file() for path in paths):
                self._finished[i] = entry["record"]
                continue
            for path in paths:
                # A list that somebody else wrote names no file elsewhere.
                if path.resolve().is_relative_to(folder.resolve()):
                    path.unlink(missing_ok=True)
        self._write()

    def _listed(self) -> tuple[Any, dict[int, dict[str, Any]]]:
        """What the list says; nothing if there is none, or a damaged one."""
        try:
            listed: Any = json.loads(self._manifest.read_text(encoding="utf-8"))
            entries = {int(i): {name: e[name] for name in _ENTRY} for i, e in listed["chunks"].items()}
            return listed["made_of"], entries
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None, {}

    def _write(self) -> None:
        chunks = {
            str(i): {
                "latents": latents,
                "files": list(files),
                "is_finished": i in self._finished,
                "record": self._finished.get(i),
            }
            for i, (latents, files) in enumerate(zip(self.chunks, self.files, strict=True))
        }
        write_json(self._manifest, {"made_of": self._key, "chunks": chunks})


def _versions() -> dict[str, str | None]:
    """What writes the chunks."""
    return {name: installed_version(name) for name in ("sae-lens-crosscoder", "sae-dashboard")}


@contextmanager
def activation_cache(
    subject: DashboardSubject, folder: Path, config: DashboardConfig, n_chunks: int
) -> Generator[Path | None]:
    """A folder for the activations that several chunks share, empty before and gone afterwards; None if none is of use.

    sae-dashboard knows its files by the number of the batch alone, so no two calls may share a folder.
    """
    needed = subject.shown_tokens.numel() * subject.joint.sources.d_in * 4
    if n_chunks < 2 or needed > min(config.cache_gb * 1e9, free_disk(folder) / 2):
        yield None
        return
    cache = folder / ".activations"
    shutil.rmtree(cache, ignore_errors=True)
    try:
        cache.mkdir(parents=True)
        yield cache
    finally:
        shutil.rmtree(cache, ignore_errors=True)
