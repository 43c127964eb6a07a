"""The checkpoints of a run: which of them are whole, which is the newest, and which are kept."""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from sae_lens_crosscoder._saelens import (
    ACTIVATIONS_STORE_STATE_FILENAME,
    RUNNER_CFG_FILENAME,
    TRAINER_STATE_FILENAME,
)
from sae_lens_crosscoder.errors import ConfigError, CrosscoderError, DamagedError, NotFoundError, first_line
from sae_lens_crosscoder.fields import merged
from sae_lens_crosscoder.files import existing_folder, remove_leftovers
from sae_lens_crosscoder.manifest import check_manifest, read_manifest
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.versions import migrate_checkpoint

AUTO = "auto"
"""Value of `resume_from_checkpoint` that stands for the newest whole checkpoint of the same configuration."""
RUN = "run"
"""What the manifest of a checkpoint, and of a finished crosscoder, calls the fingerprint of the configuration."""

logger = logging.getLogger(__name__)


def store_state_filename(shard: int) -> str:
    """The file with the state of one data shard's activation store; SAELens's own name for the first."""
    name = Path(ACTIVATIONS_STORE_STATE_FILENAME)
    return name.name if shard == 0 else f"{name.stem}_{shard}{name.suffix}"


def store_state(checkpoint: str | Path, shard: int) -> Path:
    """The file in a checkpoint with the state of one data shard.

    Raises:
        ConfigError: The checkpoint is of a run with fewer data shards.
    """
    path = Path(checkpoint) / store_state_filename(shard)
    if not path.is_file():
        raise ConfigError(
            f"{checkpoint} holds no state of data shard {shard} ({path.name}): it was written with a smaller "
            "n_data_shards, and the run would see other batches. Resume with the checkpoint's n_data_shards."
        )
    return path


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints directly in a folder, the one with the most tokens first; those of finished runs are left out."""
    numbered = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    return sorted(numbered, key=lambda path: int(path.name), reverse=True)


def newest_whole_checkpoint(root: Path, run: str) -> Path | None:
    """The checkpoint of a configuration that has seen the most tokens and is undamaged.

    Damaged ones are named in the log and passed over.

    Args:
        root: The folder above the folders of runs, which SAELens names by a unique id.
        run: Fingerprint of the configuration.

    Returns:
        Its folder, or None if there is none of this configuration.

    Raises:
        ConfigError: A later version of this package wrote it.
    """
    candidates: list[Path] = []
    for folder in root.iterdir() if root.is_dir() else ():
        if folder.is_dir() and not _is_anothers(folder, run):
            remove_leftovers(folder)
            candidates += checkpoints_in(folder)
    for candidate in sorted(candidates, key=_age):
        try:
            if not _is_of_run(candidate, read_manifest(candidate), run):
                continue
            check_manifest(candidate)
            migrate_checkpoint(candidate)
        except DamagedError as error:
            logger.warning("Passed over: %s", error)
            continue
        return candidate
    return None


def _is_anothers(folder: Path, run: str) -> bool:
    """Whether a folder of checkpoints is that of another run, which may be writing to it."""
    for checkpoint in checkpoints_in(folder):
        with suppress(DamagedError):
            return not _is_of_run(checkpoint, read_manifest(checkpoint), run)
    return False


def _age(checkpoint: Path) -> tuple[int, float]:
    return (-int(checkpoint.name), -checkpoint.stat().st_mtime)


def _is_of_run(folder: Path, manifest: Mapping[str, Any], run: str) -> bool:
    """Whether a folder was written by the run with this fingerprint.

    Its configuration is asked where the manifest says otherwise: one that another version of this package or of SAELens
    wrote may lack fields that have come since, and has another fingerprint for it.
    """
    if manifest.get(RUN) == run:
        return True
    path = folder / RUNNER_CFG_FILENAME
    found = _fingerprint_of(path.read_bytes()) if path.is_file() else None
    if isinstance(found, Exception):
        logger.warning("Passed over: %s, whose configuration cannot be read: %s", folder, first_line(found))
    return found == run


@lru_cache(maxsize=256)  # all checkpoints of a run have one configuration
def _fingerprint_of(content: bytes) -> str | Exception:
    """The fingerprint of a run configuration on disk, as this version gives it, or why it cannot be read."""
    here = {"device": "cpu", "llm_device": None, "act_store_device": None, "verbose": False, "sae": {"device": "cpu"}}
    try:
        return CrosscoderRunnerConfig.from_dict(merged(json.loads(content), here)).fingerprint
    except (CrosscoderError, ValueError, TypeError) as error:
        return error


def check_checkpoint(path: str | Path) -> None:
    """Raises:
    NotFoundError: There is no checkpoint to resume from at the path.
    DamagedError: There is one, but it is not what was written.
    ConfigError: A later version of this package wrote it.
    """
    folder = existing_folder(path, "checkpoint")
    missing = [n for n in (ACTIVATIONS_STORE_STATE_FILENAME, TRAINER_STATE_FILENAME) if not (folder / n).is_file()]
    if missing:
        raise NotFoundError(
            f"{folder} is no checkpoint to resume from: it lacks {' and '.join(missing)}. Checkpoints are the folders "
            "below checkpoint_path; to train on a finished crosscoder use from_pretrained_path."
        )
    try:
        check_manifest(folder)
        migrate_checkpoint(folder)
    except DamagedError as error:
        raise DamagedError(
            f"{error} Resume from an earlier checkpoint; resume_from_checkpoint='{AUTO}' takes the newest whole one."
        ) from error


def remove_all_but(n_kept: int, folder: Path, n_tokens: int) -> None:
    """Remove all checkpoints in a folder but the newest.

    Each is moved away before it is removed, so that none is ever there by half.

    Args:
        n_kept: How many to keep.
        folder: Where they are.
        n_tokens: What the run has seen. Checkpoints of more do not count: it was resumed from one before them, because
            they are damaged.
    """
    made = [path for path in checkpoints_in(folder) if int(path.name) <= n_tokens]
    for checkpoint in made[n_kept:]:
        aside = checkpoint.with_name(f".{checkpoint.name}-{uuid.uuid4().hex[:8]}.tmp")
        checkpoint.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def is_finished(output: Path, run: str) -> bool:
    """Whether a folder holds the whole crosscoder of a configuration."""
    try:
        return _is_of_run(output, read_manifest(output), run) and bool(check_manifest(output))
    except DamagedError:
        return False
