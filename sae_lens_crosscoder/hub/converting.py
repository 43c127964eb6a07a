"""Crosscoders of other systems, written as a folder that stock SAELens loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens import SAE

from sae_lens_crosscoder._saelens import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.files import written_aside
from sae_lens_crosscoder.hub.bundle import PUBLISHED_NAMES
from sae_lens_crosscoder.hub.loading import load_crosscoder
from sae_lens_crosscoder.manifest import write_manifest

_WRITTEN = {SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME}


def convert(repo_or_path: str | Path, out: str | Path, id: str | None = None, **how: Any) -> Path:
    """Write a crosscoder of any known format as a SAELens SAE, which `SAE.load_from_disk` gives without this package.

    Args:
        repo_or_path: What to read, as in `load_crosscoder`.
        out: Folder to write to; it is made, or has an earlier conversion replaced.
        id: Folder or file below `repo_or_path`.
        how: What else `load_crosscoder` takes (`format`, `scales`, `sources`, ...).

    Returns:
        `out`.

    Raises:
        CrosscoderError: What `load_crosscoder` and `save_crosscoder` raise.
    """
    return save_crosscoder(load_crosscoder(repo_or_path, id, **how), out)


def save_crosscoder(sae: SAE[Any], out: str | Path) -> Path:
    """Write a crosscoder as `cfg.json` and `sae_weights.safetensors` with a manifest of both; return the folder.

    Raises:
        ConfigError: The folder holds a run or a report of another crosscoder.
        SaveError: The folder cannot be written to; what was there before is untouched.
    """
    others = sorted(name for name in PUBLISHED_NAMES - _WRITTEN if (Path(out) / name).exists())
    if others:
        raise ConfigError(
            f"{out} holds {', '.join(others)} of another crosscoder, which would be taken for this one's. Choose "
            "another folder."
        )
    with written_aside(out) as folder:
        sae.save_model(folder)
        write_manifest(folder)
    return Path(out)
