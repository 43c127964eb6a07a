"""The list of a folder's files with their sizes and checksums, by which a damaged or half-written folder is seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

from sae_lens_crosscoder.errors import DamagedError, first_line
from sae_lens_crosscoder.files import write_json

MANIFEST_FILENAME = "manifest.json"
_VERSION = 1


def checksum(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def manifest_values(files: Mapping[str, tuple[int, str]], **facts: Any) -> dict[str, Any]:
    """What a manifest holds.

    Args:
        files: Size in bytes and checksum of each file, by its path in the folder.
        **facts: What else the manifest should say, as JSON.
    """
    listed = {path: {"bytes": size, "sha256": digest} for path, (size, digest) in files.items()}
    return {"manifest_version": _VERSION, **facts, "files": listed}


def write_manifest(folder: Path, **facts: Any) -> Path:
    """List all files below a folder, with size and checksum, in its `manifest.json`; the last thing to be written.

    Args:
        folder: A folder that is complete.
        **facts: What else the manifest should say, as JSON. Returned by `read_manifest`.
    """
    files = {
        path.relative_to(folder).as_posix(): (path.stat().st_size, checksum(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_FILENAME
    }
    return write_json(folder / MANIFEST_FILENAME, manifest_values(files, **facts))


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the manifest of a folder says, without looking at the files.

    Raises:
        DamagedError: There is none, or it is no manifest of this version.
    """
    path = folder / MANIFEST_FILENAME
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise DamagedError(f"{folder} has no {MANIFEST_FILENAME}: it was not written to its end.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(values, dict) or not isinstance(cast("dict[str, Any]", values).get("files"), dict):
        raise DamagedError(f"{path} lists no files: it is no manifest.")
    manifest = cast("dict[str, Any]", values)
    if manifest.get("manifest_version") != _VERSION:
        raise DamagedError(
            f"{path} is of version {manifest.get('manifest_version')!r}, this package reads version {_VERSION}. "
            "Use the version of the package that wrote it."
        )
    return manifest


def check_manifest(folder: Path, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Compare files that the manifest lists with their size and checksum; return the manifest.

    Files that it does not list are passed over.

    Args:
        folder: Where the manifest and the files are.
        names: Paths of the files that are compared; None compares all that are listed.

    Raises:
        DamagedError: A file is missing, or is not what was written. All such files are named.
    """
    manifest = read_manifest(folder)
    files = cast("dict[str, Any]", manifest["files"])
    compared = files if names is None else [name for name in names if name in files]
    damage = [text for name in compared if (text := _damage(folder, name, files[name]))]
    if damage:
        raise DamagedError(f"{folder} is damaged: {'; '.join(damage)}.")
    return manifest


def _damage(folder: Path, name: str, entry: Any) -> str | None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not isinstance(entry, dict):
        return f"{name!r} in its manifest is no file of the folder"
    listed = cast("dict[str, Any]", entry)
    file = folder / path
    if not file.is_file():
        return f"{name} is missing"
    if (size := file.stat().st_size) != listed.get("bytes"):
        return f"{name} has {size} bytes instead of {listed.get('bytes')}"
    if checksum(file) != listed.get("sha256"):
        return f"{name} has other contents than were written (SHA-256 differs)"
    return None
