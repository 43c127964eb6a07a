"""A crosscoder's models as sources of Neuronpedia."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_lens_crosscoder.dashboards.neuronpedia.export import ExportSource
from sae_lens_crosscoder.dashboards.neuronpedia.names import SourceName
from sae_lens_crosscoder.dashboards.neuronpedia.records import ExportModel
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.joint_model import JointModel
from sae_lens_crosscoder.sources import Sources


def source_names(
    sources: Sources, source_set: str, model_ids: Mapping[str, str], layers: Mapping[str, int]
) -> dict[str, SourceName]:
    """Where each model of a crosscoder stands on Neuronpedia, by its label.

    Args:
        sources: The models.
        source_set: The source set, one and the same name at every model.
        model_ids: Neuronpedia's ids of models, by label; without one, the last part of the model's name in lower case.
        layers: Layers, by label; without one, the number in the name of the hook.

    Raises:
        ConfigError: A label of no source, a hook whose layer is not known, a name that Neuronpedia does not take, or
            two models in one place.
    """
    unknown = sorted({*model_ids, *layers} - set(sources.labels))
    if unknown:
        raise ConfigError(f"There is no source {unknown[0]!r}. The sources are {', '.join(map(repr, sources.labels))}.")
    names = {
        source.label: SourceName(
            model_ids.get(source.label, _model_id(source.model_name)),
            source_set,
            layers[source.label] if source.label in layers else _layer(source.label, source.hook_name),
        )
        for source in sources
    }
    places = list(names.values())
    if twice := next((name for name in places if places.count(name) > 1), None):
        raise ConfigError(
            f"Two sources would be {twice.model_id!r} at layer {twice.layer} of one source set. Say which model each "
            "of them is: --model-id LABEL=ID."
        )
    return names


def export_sources(sources: Sources, batches: Mapping[str, Path], joint: JointModel | None) -> list[ExportSource]:
    """The models of a crosscoder with the folders of their batches, by label, in the order of the sources.

    Args:
        sources: The models.
        batches: The folder of each.
        joint: The loaded models, which say how many layers they have; None leaves that unknown.
    """
    labels = " and ".join(sources.labels)
    return [
        ExportSource(
            batches=batches[source.label],
            hook_name=source.hook_name,
            model=_model(source.model_name, joint, place),
            notes=f"Source {source.label!r} of a crosscoder of {labels}: latents and activations are those of all "
            "its sources, logits and vectors those of this one.",
        )
        for place, source in enumerate(sources)
    ]


def _model(model_name: str, joint: JointModel | None, place: int) -> ExportModel:
    model: Any = joint.source_models[place] if joint is not None else None
    # TransformerLens keeps sizes in cfg; a Hugging Face model, which SAELens wraps, in config.
    cfg, config = getattr(model, "cfg", None), getattr(getattr(model, "model", None), "config", None)
    owner = model_name.split("/")[0] if re.fullmatch(r"[\w.-]+/[\w.-]+", model_name) else "custom"
    return ExportModel(
        n_layers=getattr(cfg, "n_layers", None) or getattr(config, "num_hidden_layers", None) or 0,
        n_neurons_per_layer=getattr(cfg, "d_mlp", None) or getattr(config, "intermediate_size", None) or 0,
        owner=owner,
    )


def _model_id(model_name: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", model_name.rstrip("/").split("/")[-1].lower())


def _layer(label: str, hook_name: str) -> int:
    numbers = [part for part in hook_name.split(".") if part.isdecimal()]
    if len(numbers) != 1:
        raise ConfigError(
            f"The hook {hook_name!r} of source {label!r} does not name one layer, and Neuronpedia needs one: "
            f"--layer {label}=N."
        )
    return int(numbers[0])
