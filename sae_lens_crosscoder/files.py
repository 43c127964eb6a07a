"""Writing folders so that nothing half-written stays: aside first, then moved into place."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sae_lens_crosscoder.errors import NotFoundError, SaveError


@contextmanager
def written_aside(folder: str | Path) -> Generator[Path]:
    """A temporary folder beside `folder`, whose files are moved into it when the block ends well.

    If the block raises (a full disk, say), the temporary folder is removed and `folder` is what it was before. Files of
    `folder` that the block does not write stay.

    Raises:
        SaveError: The system refused a write; the message names the folder and the reason.
    """
    target = Path(folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".tmp", dir=target.parent))
    except OSError as error:
        raise SaveError(f"Cannot write beside {target}: {error}. Nothing was saved.") from error
    try:
        yield aside
        for path in aside.rglob("*"):
            if path.is_file():
                _sync(path)
        if not target.exists():
            aside.chmod(0o755)  # mkdtemp makes folders that only their owner can read
            aside.rename(target)
            return
        for path in sorted(aside.rglob("*")):
            moved = target / path.relative_to(aside)
            if path.is_dir():
                moved.mkdir(exist_ok=True)
            else:
                path.replace(moved)
    except OSError as error:
        raise SaveError(
            f"Saving to {target} failed: {error}. What was there before is unchanged; free some space or choose "
            "another folder."
        ) from error
    except Exception as error:
        # safetensors reports a full disk by an error of its own.
        if "No space left" in str(error) or "os error 28" in str(error):
            raise SaveError(f"Saving to {target} failed: {error}. What was there before is unchanged.") from error
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_file(path: str | Path, content: bytes) -> Path:
    """Write one file aside, then move it into place; folders are made. Returns the path.

    Raises:
        SaveError: The system refused. A file that was there before is untouched and nothing half-written stays.
    """
    target = Path(path)
    aside = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        aside.replace(target)
    except OSError as error:
        raise SaveError(
            f"{target} could not be written: {error.strerror or error}. What was there before is unchanged; choose "
            "another path or make room."
        ) from error
    finally:
        with suppress(OSError):  # a folder that refuses has already been reported
            aside.unlink(missing_ok=True)
    return target


def write_json(path: str | Path, value: Any) -> Path:
    """Write a value as JSON aside, then move it into place. Returns the path."""
    return write_file(path, (json.dumps(value, indent=2) + "\n").encode())


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
    with path.open("rb") as file:
        os.fsync(file.fileno())
