"""Latents as bodies of POST /api/feature/upload-batch, by which users upload to source sets of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sae_lens_crosscoder.dashboards.neuronpedia.latents import Latent, Window
from sae_lens_crosscoder.dashboards.neuronpedia.names import SourceName
from sae_lens_crosscoder.dashboards.neuronpedia.schema import FEATURE, PAYLOAD, WINDOW

_MAX_LATENTS = int(PAYLOAD.columns["features"].high)
_MAX_LOGITS = int(FEATURE.columns["topLogits"].high)
_MAX_TOKENS = int(WINDOW.columns["tokens"].high)
# Below what hosts of web applications accept as one body (4.5 MB at Vercel).
_MAX_BYTES = 4_000_000


class PayloadWriter:
    """Writes latents to `payload-{i}.json`, as many to a file as the API takes; one latent a line.

    Dead latents are left out, because the API refuses a latent without activations.

    Args:
        folder: Where to write.
        name: The source; its model and source set have to exist on Neuronpedia.
    """

    def __init__(self, folder: Path, name: SourceName) -> None:
        self.n_files = 0
        self._folder = folder
        self._name = name
        self._lines: list[str] = []
        self._n_bytes = 0

    def add(self, latent: Latent) -> None:
        """Write a latent, with the ones before it or in a file of its own if those are full."""
        if not latent.windows:
            return
        line = json.dumps(payload_feature(latent), allow_nan=False)
        if len(self._lines) == _MAX_LATENTS or self._n_bytes + len(line) > _MAX_BYTES:
            self.close()
        self._lines.append(line)
        self._n_bytes += len(line)

    def close(self) -> None:
        """Write the latents that no file holds yet."""
        if not self._lines:
            return
        ids = f'"modelId": {json.dumps(self._name.model_id)}, "source": {json.dumps(self._name.source_id)}'
        body = f'{{{ids}, "features": [\n' + ",\n".join(self._lines) + "\n]}\n"
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"payload-{self.n_files}.json").write_text(body, "utf-8")
        self.n_files += 1
        self._lines, self._n_bytes = [], 0


def payload_feature(latent: Latent) -> dict[str, Any]:
    """A latent as the API takes it: at most 20 logits at either end, and windows of at most 1,024 tokens."""
    return {
        "index": latent.index,
        "density": latent.frac_nonzero,
        "topLogits": _logits(latent, "pos"),
        "bottomLogits": _logits(latent, "neg"),
        "activations": [_window(window) for window in latent.windows],
    }


def _logits(latent: Latent, sign: str) -> list[dict[str, Any]]:
    pairs = zip(latent.tables[f"{sign}_str"], latent.tables[f"{sign}_values"], strict=True)
    return [{"token": token, "value": value} for token, value in pairs][:_MAX_LOGITS]


def _window(window: Window) -> dict[str, Any]:
    largest = window.values.index(max(window.values))
    start = max(0, min(largest - _MAX_TOKENS // 2, len(window.values) - _MAX_TOKENS))
    cut = slice(start, start + _MAX_TOKENS)
    # sae-dashboard's -1 for the windows with the largest activations is no share, and the API refuses it.
    is_interval = window.bin_contains >= 0
    return {
        "tokens": window.tokens[cut],
        "values": window.values[cut],
        "quantileMin": window.bin_min if is_interval else None,
        "quantileMax": window.bin_max if is_interval else None,
        "quantileFraction": window.bin_contains if is_interval else None,
    }
