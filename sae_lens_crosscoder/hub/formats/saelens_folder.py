"""SAELens's own layout, which this package writes too: `cfg.json` and `sae_weights.safetensors`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from sae_lens import SAE

from sae_lens_crosscoder._saelens import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, TRAINER_STATE_FILENAME, UNREADABLE_SAE
from sae_lens_crosscoder.errors import CheckpointError, SourceError, first_line
from sae_lens_crosscoder.hub.checked_files import CheckpointFolder
from sae_lens_crosscoder.hub.formats.checkpoint_format import CheckpointFormat
from sae_lens_crosscoder.hub.options import ReadOptions
from sae_lens_crosscoder.sources import Source, Sources


def detect(folder: CheckpointFolder) -> bool:
    """Whether its two files are there."""
    return folder.has(SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME)


def read(folder: CheckpointFolder, options: ReadOptions) -> SAE[Any]:
    """The SAE as stock SAELens loads it, with its sources checked against its width."""
    config = folder.config(SAE_CFG_FILENAME)
    weights = folder.tensors(SAE_WEIGHTS_FILENAME)
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise CheckpointError(f"{folder.path}: {name} holds NaN, infinities or numbers that are not floating.")
    if TRAINER_STATE_FILENAME in folder.names:
        raise CheckpointError(
            f"{folder.path} is a training checkpoint: its activation scales and decoder norms are not folded in. Load "
            "the output of the run, or train on from it with from_pretrained_path."
        )
    if config.values.get("normalize_activations", "none") == "expected_average_only_in":
        raise CheckpointError(
            f"{folder.path} expects scaled activations (normalize_activations), and SAELens would feed it raw ones. "
            "Fold the scales in before saving."
        )
    try:
        sae = SAE.load_from_disk(folder.path)
    except UNREADABLE_SAE as error:
        raise CheckpointError(f"The SAE in {folder.path} cannot be loaded: {first_line(error)}") from error
    _set_sources(sae, options)
    return sae


def _set_sources(sae: SAE[Any], options: ReadOptions) -> None:
    metadata = sae.cfg.metadata
    if options.sources is not None:
        for name, value in _joined_sources(metadata, options).to_metadata().items():
            metadata[name] = value
    sources = Sources.from_metadata(metadata)
    if sources.d_in != sae.cfg.d_in:
        raise SourceError(
            f"The sources {', '.join(sources.labels)} are {sources.d_in} wide together, but the SAE takes "
            f"{sae.cfg.d_in}."
        )


def _joined_sources(metadata: Any, options: ReadOptions) -> Sources:
    """What the caller says over what the SAE's metadata say; the caller's alone if those name no sources."""
    if metadata.sources is None:
        given = [source.to_dict() if isinstance(source, Source) else source for source in options.sources or ()]
        return Sources.from_dicts(given, metadata.combine or "concat", metadata.token_alignment or "same_ids")
    own = Sources.from_metadata(metadata)
    joined = options.joined_sources([source.to_dict() for source in own], own.combine)
    return replace(joined, token_alignment=own.token_alignment)


SAELENS = CheckpointFormat("saelens", "cfg.json + sae_weights.safetensors", detect, read)
