"""The rows that an export fills Neuronpedia's tables with."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from sae_lens_crosscoder.dashboards.neuronpedia.latents import BatchHeader, Latent, Window
from sae_lens_crosscoder.dashboards.neuronpedia.names import SourceName

Row = dict[str, Any]
Visibility = Literal["PUBLIC", "UNLISTED", "PRIVATE"]

_DEFAULT_STEER_STRENGTH = 10.0  # Neuronpedia's own


@dataclass(frozen=True)
class Release:
    """What is published, and by whom: one release for all models of a crosscoder."""

    name: str
    """Name of the release, unique on Neuronpedia."""

    description: str
    """What the release is, shown as its title."""

    creator_name: str
    """Who made the crosscoder."""

    creator_id: str
    """Id of a user in Neuronpedia's database, who owns all rows. A new database has `SEEDED_CREATOR_ID` alone."""

    urls: list[str] = field(default_factory=list[str])
    """Pages of the release, such as the crosscoder's repository."""

    visibility: Visibility = "PUBLIC"
    """Who can see the release."""


@dataclass(frozen=True)
class ExportModel:
    """What Neuronpedia is told of a model that it does not know yet; of one that it knows, nothing changes."""

    n_layers: int = 0
    """Number of layers; 0 if unknown."""

    n_neurons_per_layer: int = 0
    """Width of the feed-forward layers; 0 if unknown."""

    owner: str = "custom"
    """Who made the model."""

    is_chat_model: bool = False
    """Whether the model is tuned for chat."""


def metadata_rows(
    name: SourceName, header: BatchHeader, model: ExportModel, release: Release, notes: str | None
) -> dict[str, Row]:
    """The one row of each file beside the latents: release, model, source set and source, by file name."""
    shared: Row = {"creatorId": release.creator_id, "visibility": release.visibility}
    return {
        "release.jsonl": {
            "name": release.name,
            "description": release.description,
            "descriptionShort": release.description,
            "creatorName": release.creator_name,
            "creatorNameShort": release.creator_name,
            "urls": release.urls,
            **shared,
        },
        "model.jsonl": {
            "id": name.model_id,
            "displayName": name.model_id,
            "displayNameShort": name.model_id,
            "layers": model.n_layers,
            "neuronsPerLayer": model.n_neurons_per_layer,
            "owner": model.owner,
            "instruct": model.is_chat_model,
            **shared,
        },
        "sourceset.jsonl": {
            "modelId": name.model_id,
            "name": name.source_set,
            "description": release.description,
            "creatorName": release.creator_name,
            "releaseName": release.name,
            "urls": release.urls,
            "hasDashboards": True,
            "allowInferenceSearch": False,
            **shared,
        },
        "source.jsonl": {
            "id": name.source_id,
            "modelId": name.model_id,
            "setName": name.source_set,
            "hasDashboards": True,
            "inferenceEnabled": False,
            "num_prompts": header.n_prompts,
            "num_tokens_in_prompt": header.n_tokens_in_prompt,
            "dataset": header.dataset,
            "notes": notes,
            **shared,
        },
    }


def neuron_row(latent: Latent, name: SourceName, hook_name: str, creator_id: str) -> Row:
    """A latent as a row of Neuronpedia's table Neuron.

    The steering strength is the latent's largest activation, as Neuronpedia sets it itself; for a dead latent, which
    has none, Neuronpedia's default of 10 (a strength of 0 would steer nothing).
    """
    strength = latent.max_activation
    return {
        "modelId": name.model_id,
        "layer": name.source_id,
        "index": str(latent.index),
        "sourceSetName": name.source_set,
        "creatorId": creator_id,
        "maxActApprox": strength,
        "hasVector": bool(latent.vector),
        "vector": latent.vector,
        "vectorDefaultSteerStrength": strength if strength > 0 else _DEFAULT_STEER_STRENGTH,
        "hookName": hook_name,
        "frac_nonzero": latent.frac_nonzero,
        **latent.tables,
    }


def activation_rows(latent: Latent, name: SourceName, creator_id: str) -> Iterator[Row]:
    """The windows of a latent as rows of Neuronpedia's table Activation.

    Ids are UUIDs of a row's content and its place: an export that is made twice has the same ids and is imported once,
    one that has changed has others, and no two sources share any.
    """
    for place, window in enumerate(latent.windows):
        row = _activation_row(latent, window, name, creator_id)
        yield {"id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{place} {json.dumps(row)}")), **row}


def _activation_row(latent: Latent, window: Window, name: SourceName, creator_id: str) -> Row:
    largest = max(window.values)
    # Neuronpedia's page knows the windows with the largest activations by the -1 of sae-dashboard.
    return {
        "modelId": name.model_id,
        "layer": name.source_id,
        "index": str(latent.index),
        "tokens": window.tokens,
        "values": window.values,
        "maxValue": largest,
        "maxValueTokenIndex": window.values.index(largest),
        "minValue": min(window.values),
        "binMin": window.bin_min,
        "binMax": window.bin_max,
        "binContains": window.bin_contains,
        "qualifyingTokenIndex": window.qualifying_token_index,
        "creatorId": creator_id,
    }
