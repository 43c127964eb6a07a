"""A file as it is published, the manifest of such files, and the comparison of fetched files with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sae_lens_crosscoder.errors import DamagedError
from sae_lens_crosscoder.manifest import MANIFEST_FILENAME, check_manifest, checksum, manifest_values


@dataclass(frozen=True)
class PublishedFile:
    """One file as it is published: a file of this machine, or bytes that were made from one."""

    name: str
    content: Path | bytes

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """Checksum of the content, as hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest() if isinstance(self.content, bytes) else checksum(self.content)


def make_manifest(files: Iterable[PublishedFile]) -> PublishedFile:
    """The manifest of these files."""
    values = manifest_values({file.name: (file.size_bytes, file.sha256) for file in files})
    return PublishedFile(MANIFEST_FILENAME, (json.dumps(values, indent=2) + "\n").encode())


def check_against_manifest(folder: Path, names: Iterable[str], what: str) -> None:
    """Compare files with the manifest that lies beside them; without one there is nothing to compare.

    Raises:
        DamagedError: A file is not the one that the manifest lists, or the manifest cannot be read.
    """
    if not (folder / MANIFEST_FILENAME).is_file():
        return
    try:
        check_manifest(folder, names)
    except DamagedError as error:
        raise DamagedError(
            f"{what} is not what its manifest lists: it was damaged on the way, or changed without the manifest. "
            f"{error} Remove the file and fetch it again; if that gives the same, ask whoever published it."
        ) from error
