"""Exports for Neuronpedia that the tests share, made from batches of sae-dashboard that are kept beside the tests.

The batches are sae-dashboard 0.8.0's own, of a random SAE with ten latents on two random models: latent 3 is dead,
latent 4 always fires with the same activation.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from sae_lens_crosscoder.dashboards.neuronpedia import (
    SEEDED_CREATOR_ID,
    ExportedSource,
    ExportSource,
    Release,
    export_neuronpedia,
)

BATCHES = Path(__file__).parent / "dashboards" / "batches"
MODELS = ("tiny-base", "tiny-chat")
HOOK = "blocks.1.hook_resid_post"
SOURCE_ID = "1-crosscoder-res"
RELEASE = Release("tiny-crosscoder", "A crosscoder of two tiny models", "Someone", SEEDED_CREATOR_ID)


def export(out: Path, batches: Path = BATCHES, release: Release = RELEASE) -> list[ExportedSource]:
    """The export of both models."""
    return export_neuronpedia([ExportSource(batches / model, HOOK) for model in MODELS], out, release)


def batch_features(model: str, batches: Path = BATCHES) -> list[dict[str, Any]]:
    """What the batches say of each latent."""
    files = sorted((batches / model).glob("batch-*.json"))
    return [feature for file in files for feature in json.loads(file.read_text())["features"]]


def written_batches(folder: Path, features: list[dict[str, Any]], model: str = "tiny-base", **header: Any) -> Path:
    """A folder with one batch of these latents."""
    batch = {"model_id": model, "layer": 1, "sae_set": "crosscoder-res", "sae_id_suffix": None, **header}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "batch-0.json").write_text(json.dumps({**batch, "features": features}))
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder of gzipped lines, in the order of the files' numbers."""
    files = sorted(folder.glob("batch-*.jsonl.gz"), key=lambda file: int(file.name.split("-")[1].split(".")[0]))
    return [json.loads(line) for file in files for line in gzip.decompress(file.read_bytes()).splitlines()]
