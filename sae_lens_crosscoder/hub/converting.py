"""Crosscoders of other systems, written as a folder that stock SAELens loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens import SAE

from sae_lens_crosscoder.files import written_aside
from sae_lens_crosscoder.hub.loading import load_crosscoder
from sae_lens_crosscoder.manifest import write_manifest


def convert(repo_or_path: str | Path, out: str | Path, id: str | None = None, **how: Any) -> Path:
    """Write a crosscoder of any known format as a SAELens SAE, which `SAE.load_from_disk` gives without this package.

    Args:
        repo_or_path: What to read, as in `load_crosscoder`.
        out: Folder to write `cfg.json` and `sae_weights.safetensors` to; it is made, or has these two files replaced.
        id: Folder or file below `repo_or_path`.
        how: What else `load_crosscoder` takes (`format`, `scales`, `sources`, ...).

    Returns:
        `out`.

    Raises:
        CrosscoderError: What `load_crosscoder` raises, or a folder that cannot be written to.
    """
    return save_crosscoder(load_crosscoder(repo_or_path, id, **how), out)


def save_crosscoder(sae: SAE[Any], out: str | Path) -> Path:
    """Write a crosscoder as `cfg.json` and `sae_weights.safetensors` with a manifest of both; return the folder.

    Raises:
        SaveError: The folder cannot be written to; what was there before is untouched.
    """
    with written_aside(out) as folder:
        sae.save_model(folder)
        write_manifest(folder)
    return Path(out)
