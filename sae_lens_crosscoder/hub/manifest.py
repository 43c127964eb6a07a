"""The manifest beside a published crosscoder: its files by hash, so that what is fetched is what was published."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from sae_lens_crosscoder.errors import DataError

MANIFEST = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True)
class PublishedFile:
    """One file as it is published: a file of this machine, or bytes that were made from one."""

    name: str
    content: Path | bytes

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    @property
    def sha256(self) -> str:
        """Hash of the content, in hexadecimal digits."""
        return (
            hashlib.sha256(self.content).hexdigest() if isinstance(self.content, bytes) else file_sha256(self.content)
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def make_manifest(files: Iterable[PublishedFile]) -> PublishedFile:
    """The manifest of these files."""
    listed = {file.name: {"sha256": file.sha256, "size_bytes": file.size_bytes} for file in files}
    return PublishedFile(MANIFEST, (json.dumps({"format": _FORMAT, "files": listed}, indent=2) + "\n").encode())


def read_manifest(content: bytes, what: str) -> dict[str, Mapping[str, Any]]:
    """The files of a manifest: `{name: {"sha256": ..., "size_bytes": ...}}`.

    Raises:
        DataError: It is no manifest.
    """
    try:
        values = json.loads(content)
        files = cast("dict[str, Mapping[str, Any]]", values["files"])
        if values["format"] != _FORMAT or not all(isinstance(file["sha256"], str) for file in files.values()):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"The manifest of {what} cannot be read, so its files cannot be checked. It may be damaged, or written by "
            "a newer version of this package."
        ) from error
    return files


def check_against_manifest(folder: Path, names: Iterable[str], what: str) -> None:
    """Compare files with the manifest that lies beside them; without one there is nothing to compare.

    Raises:
        DataError: A file is not what was published.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return
    files = read_manifest(manifest.read_bytes(), what)
    for name in names:
        if name in files and file_sha256(folder / name) != files[name]["sha256"]:
            raise DataError(
                f"{name} of {what} is not the file that was published: its hash is not that of the manifest. It was "
                f"damaged on the way, or changed on the Hub without the manifest. Remove {folder / name} and fetch it "
                "again; if that gives the same, ask who published it."
            )
