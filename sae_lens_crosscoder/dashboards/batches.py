"""sae-dashboard's batch files, one folder a source: what exporters for Neuronpedia read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sae_lens_crosscoder._saelens import extract_layer_from_tlens_hook_name
from sae_lens_crosscoder.dashboards._sae_dashboard import NeuronpediaConverter, NeuronpediaRunnerConfig, SaeVisData
from sae_lens_crosscoder.dashboards.chunks import ChunkFolder, activation_cache, chunked
from sae_lens_crosscoder.dashboards.lenses import Lens, lens_fingerprint, source_lenses
from sae_lens_crosscoder.dashboards.reading import read_latents
from sae_lens_crosscoder.dashboards.subject import DashboardConfig, DashboardSubject
from sae_lens_crosscoder.dashboards.token_strings import TokenStrings
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.files import write_file


@dataclass(frozen=True)
class BatchNames:
    """What a batch file says of where its latents are from."""

    model_id: str
    """Name of the model, as the reader of the batches knows it."""

    sae_set: str = "crosscoder"
    """Name of the crosscoder."""

    layer: int | None = None
    """Layer of the hook; None reads it from the hook's name, and takes 0 where it names none."""

    suffix: str | None = None
    """What tells several crosscoders of one set and layer apart."""


def write_batches(
    subject: DashboardSubject,
    latents: Sequence[int],
    out: str | Path,
    names: Mapping[str, BatchNames] | None = None,
    config: DashboardConfig | None = None,
) -> dict[str, Path]:
    """Write `batch-0.json`, `batch-1.json`, ... of the latents into one folder for each source, `out/<label>/`.

    The files are sae-dashboard's own: latents with the same indices and activations for every source, and that source's
    logits, neurons and decoder row (`vector`, in units of its activations). Batches hold `n_latents_per_page` latents
    in the given order. Tokens are decoded. A call that was stopped goes on where it was, and batches of another
    crosscoder, text or configuration are made anew.

    Args:
        subject: The models, the crosscoder and the text.
        latents: Indices of the latents.
        out: Folder to write to.
        names: What the files call each source, by its label; its model's name if left out.
        config: How much is shown.

    Returns:
        The folder of each source, by label.

    Raises:
        ConfigError: Latents that are not there, names of no source, or what `read_latents` refuses.
        MissingDependencyError: sae-dashboard is not installed.
    """
    config = config or DashboardConfig()
    out = Path(out)
    labels = subject.joint.sources.labels
    if unknown := sorted(set(names or {}) - set(labels)):
        raise ConfigError(f"There are names for {unknown}, and the sources are {labels}: name sources by their labels.")
    named = {s.label: BatchNames(s.model_name) for s in subject.joint.sources} | dict(names or {})
    lenses = source_lenses(subject, config.fold_final_norm)
    called = {label: vars(name) for label, name in named.items()}
    made_of = [subject.fingerprint(config), lens_fingerprint(lenses), called, subject.dataset]
    chunks = chunked(subject, latents, config)
    files = [[f"{label}/batch-{i}.json" for label in labels] for i in range(len(chunks))]
    folder = ChunkFolder(out / "batches.json", made_of, chunks, files)
    with activation_cache(subject, out, config, len(folder.pending)) as cache:
        for i in folder.progress("Batches"):
            readings = read_latents(subject, lenses, folder.chunks[i], config, cache)
            for file, lens, features in zip(files[i], lenses, readings.by_source, strict=True):
                content = batch_json(subject, lens, features, lenses[0].tokens, named[lens.source.label])
                write_file(out / file, content.encode())
            folder.finish(i)
    return {label: out / label for label in labels}


def batch_json(
    subject: DashboardSubject, lens: Lens, features: Mapping[int, Any], contexts: TokenStrings, name: BatchNames
) -> str:
    """One batch of one source, by sae-dashboard's `NeuronpediaConverter`, with logits to five digits.

    Args:
        subject: The text.
        lens: The source.
        features: sae-dashboard's `FeatureData` of the latents, as this source has them.
        contexts: Strings of the tokens of contexts.
        name: What the file calls the source.
    """
    layer = name.layer if name.layer is not None else extract_layer_from_tlens_hook_name(lens.source.hook_name)
    settings = NeuronpediaRunnerConfig(
        sae_set=name.sae_set,
        sae_path="",
        outputs_dir="",
        model_id=name.model_id,
        layer=layer or 0,
        np_sae_id_suffix=name.suffix,
        huggingface_dataset_path=subject.dataset,
        n_prompts_total=len(subject.shown_tokens),
        n_tokens_in_prompt=subject.shown_tokens.shape[1],
    )
    # The converter knows one vocabulary; tokens of contexts and of logits may be of two.
    shift = 1 + int(subject.shown_tokens.max())
    strings: dict[int, str] = {}
    shifted: dict[int, Any] = {}
    for latent, feature in features.items():
        table = feature.logits_table_data
        ids = {"top_token_ids": table.top_token_ids, "bottom_token_ids": table.bottom_token_ids}
        strings |= {shift + token: lens.tokens[token] for part in ids.values() for token in part}
        moved = {key: [shift + token for token in part] for key, part in ids.items()}
        shifted[latent] = replace(feature, logits_table_data=replace(table, **moved))
    strings |= {int(token): contexts[token] for token in subject.shown_tokens.unique().tolist()}
    vectors = dict(zip(features, lens.directions[list(features)].float().cpu(), strict=True))
    converted = NeuronpediaConverter.convert_to_np_json(
        model=SimpleNamespace(cfg=SimpleNamespace(d_vocab=shift + lens.W_U.shape[1])),
        vis_data=SaeVisData(cfg=None, feature_data_dict=shifted),
        np_cfg=settings,
        vocab_dict=strings,
        original_vectors=vectors,
    )
    batch = json.loads(converted)
    for written in batch["features"]:
        feature = features[written["feature_index"]]
        # The converter keeps three places, which of the logits of a weak slice leaves 0.001 or 0.
        written["pos_values"] = _rounded(feature.logits_table_data.top_logits)
        written["neg_values"] = _rounded(feature.logits_table_data.bottom_logits)
        written["logits_hist_data_bar_values"] = _rounded(feature.logits_histogram_data.bar_values)
    return json.dumps(batch)


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
