"""Writing files and folders so that nothing half-written stays: aside first, then moved into place."""

from __future__ import annotations

import errno
import glob
import json
import math
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from sae_lens_crosscoder.errors import CrosscoderError, NotFoundError, SaveError, first_line

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ELSEWHERE = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EBUSY, errno.EXDEV, errno.ENAMETOOLONG}
_REFUSED = {*_FULL, *_ELSEWHERE, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}

_ARCHIVE = ("inline_container", "PytorchStreamWriter failed")
"""What torch says of an archive that it could not write to its end, whatever the reason was."""

_LEFTOVER = re.compile(r"\.(?P<name>.+)-[a-z0-9_]{8}\.tmp(?P<old>\.old)?")
"""What `written_aside` calls the folder that it writes, and the one that it replaces."""
_LEFTOVER_FILE = re.compile(r"\.[0-9a-f]{32}\.tmp")
"""What `write_file` calls the file that it writes."""


@contextmanager
def written_aside(folder: str | Path) -> Generator[Path]:
    """A temporary folder beside `folder`, which takes its place when the block ends well.

    Files of `folder` that the block does not write are taken over. If the block raises (a full disk, say), the
    temporary folder is removed and `folder` is what it was before. If the process is killed, `remove_leftovers` puts
    things right.

    Raises:
        SaveError: The system refused a write; the message names the folder and the reason.
    """
    target = Path(folder).resolve()
    with _refusals_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        # A folder that cannot be renamed (a mount, one that somebody works in, or in a folder of somebody else) is
        # written to file by file.
        in_use = target.is_mount() or Path.cwd().is_relative_to(target)
        fixed = target.is_dir() and (in_use or not os.access(target.parent, os.W_OK))
        place = target if fixed else target.parent
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".tmp", dir=place))
    try:
        with _refusals_named(target):
            aside.chmod(0o755)  # mkdtemp makes folders that only their owner can read
            yield aside
            for path in (*aside.rglob("*"), aside):
                _sync(path)
            if fixed:
                _move_files(aside, target)
            else:
                _take_place(aside, target)
            _sync(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(folder: str | Path, idle_seconds: float = 0) -> None:
    """Remove what a killed process left of writing `folder`, or files and folders directly below it.

    Where it was killed between moving the old folder away and the new one in, the old one is put back.

    Args:
        folder: Where no other process may be writing folders.
        idle_seconds: Files that were written to since are another process's, and stay.
    """
    newest = time.time() - idle_seconds
    for path in Path(folder).glob(".*.tmp"):
        with suppress(FileNotFoundError):  # another process was as fast
            if _LEFTOVER_FILE.fullmatch(path.name) and path.stat().st_mtime <= newest:
                path.unlink()
    target = Path(folder).resolve()
    names = [*(target.parent.glob(f".{glob.escape(target.name)}-*")), *target.glob(".*-*")]
    leftovers = [(path, match) for path in names if (match := _LEFTOVER.fullmatch(path.name))]
    for path, match in sorted(leftovers, key=lambda item: item[1]["old"] is None):  # the old folders first
        if path.parent == target.parent and match["name"] != target.name:
            continue  # another folder's
        place = path.with_name(match["name"])
        if match["old"] and not place.exists():
            path.rename(place)
        else:
            shutil.rmtree(path, ignore_errors=True)


def check_writable(folder: str | Path) -> None:
    """Raises:
    SaveError: Nothing can be written to the folder, or to the nearest one above it that is there.
    """
    target = Path(folder).resolve()
    nearest = next(path for path in (target, *target.parents) if path.exists())
    with _refusals_named(target), tempfile.TemporaryFile(dir=nearest):
        return


def _move_files(aside: Path, target: Path) -> None:
    # The configuration last: without it the folder is no SAE, so a break in between is seen.
    for path in sorted(aside.rglob("*"), key=lambda path: (path.name.endswith(".json"), path)):
        moved = target / path.relative_to(aside)
        if path.is_dir():
            moved.mkdir(parents=True, exist_ok=True)
        else:
            moved.parent.mkdir(parents=True, exist_ok=True)
            path.replace(moved)


def _take_place(aside: Path, target: Path) -> None:
    if not target.exists():
        aside.rename(target)
        return
    for old in target.rglob("*"):
        new = aside / old.relative_to(target)
        if old.is_dir() and not old.is_symlink():
            new.mkdir(exist_ok=True)
        elif not new.exists():
            _link(old, new)
    replaced = aside.with_name(f"{aside.name}.old")
    target.rename(replaced)
    aside.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)


def _link(old: Path, new: Path) -> None:
    if old.is_symlink():  # to a folder on another disk, say
        new.symlink_to(old.readlink())
        return
    try:
        os.link(old, new)
    except OSError:  # a file system without hard links
        shutil.copy2(old, new)


@contextmanager
def _refusals_named(target: Path) -> Generator[None]:
    """Turn a refused write into a SaveError; other errors pass."""
    try:
        yield
    except CrosscoderError:
        raise
    except Exception as error:
        refused = isinstance(error, OSError) and error.errno in _REFUSED
        if not refused and not _says_full(error):
            raise
        reason = str(error) if refused else f"No space left, or a write that was refused: {first_line(error)}"
        raise SaveError(
            f"Saving to {target} failed: {reason}. What was there before is unchanged; free some space or choose "
            "another folder."
        ) from error


def _says_full(error: Exception) -> bool:
    """Whether it is a full disk, which safetensors and torch's archives report by errors of their own."""
    said = str(error)
    return "No space left" in said or (isinstance(error, RuntimeError) and any(words in said for words in _ARCHIVE))


@contextmanager
def file_written_aside(path: str | Path) -> Generator[Path]:
    """A path beside `path`, whose file takes its place, on the disk, when the block ends well; folders are made.

    Raises:
        SaveError: The system refused. A file that was there before is untouched and nothing half-written stays.
    """
    target = Path(path)
    aside = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        _sync(aside)
        aside.replace(target)
        _sync(target.parent)
    except CrosscoderError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not _says_full(error):
            raise
        reason = getattr(error, "strerror", None) or error
        raise SaveError(
            f"{target} could not be written: {reason}. What was there before is unchanged; choose another path or make "
            "room."
        ) from error
    finally:
        with suppress(OSError):  # a folder that refuses has already been reported
            aside.unlink(missing_ok=True)


def write_file(path: str | Path, content: bytes) -> Path:
    """Write one file aside, then move it into place; folders are made. Returns the path.

    Raises:
        SaveError: The system refused. A file that was there before is untouched and nothing half-written stays.
    """
    with file_written_aside(path) as aside:
        aside.write_bytes(content)
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write a value as JSON aside, then move it into place; NaN and infinities become null. Returns the path."""
    return write_file(path, (json.dumps(_without_nan(value), indent=2, allow_nan=False) + "\n").encode())


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in cast("dict[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in cast("list[Any]", value)]
    return value


def existing_folder(path: str | Path, what: str) -> Path:
    """The folder as a path.

    Args:
        path: Where it should be.
        what: What it should be, for the message ("checkpoint").

    Raises:
        NotFoundError: There is no such folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        near = sorted(p.name for p in folder.parent.iterdir() if p.is_dir()) if folder.parent.is_dir() else []
        hint = f" Beside it there are: {', '.join(near[:5])}." if near else ""
        raise NotFoundError(f"There is no {what} at {folder}.{hint}")
    return folder


def _sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
