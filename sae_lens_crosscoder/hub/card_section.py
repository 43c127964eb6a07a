"""What a model card says of one crosscoder: only what its files say, with the definitions of what is measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sae_lens_crosscoder._saelens import SAE_WEIGHTS_FILENAME
from sae_lens_crosscoder.diffing.classes import DEAD, ClassThresholds, class_counts, classify_latents
from sae_lens_crosscoder.diffing.diff_report import LatentTable
from sae_lens_crosscoder.diffing.diff_report.latent_table import PARQUET
from sae_lens_crosscoder.diffing.geometry import decoder_norm_shares, decoder_norms
from sae_lens_crosscoder.hub.bundle import REPORT, Bundle
from sae_lens_crosscoder.hub.markdown import Cell, plain, table
from sae_lens_crosscoder.hub.redaction import LOCAL, datasets_of
from sae_lens_crosscoder.training.saved_run import DEAD_LATENTS

_RECIPE = {
    "training_tokens": "training tokens",
    "train_batch_size_tokens": "tokens a step",
    "lr": "learning rate",
    "lr_scheduler_name": "schedule",
    "lr_warm_up_steps": "warm-up steps",
    "lr_decay_steps": "steps of decay at the end",
    "adam_beta1": "Adam beta 1",
    "adam_beta2": "Adam beta 2",
    "context_size": "context size",
    "buffer_dtype": "dtype of the activation buffer",
    "seed": "seed",
    "stage": "stage",
}
_METRICS = {
    "explained_variance": "explained variance",
    "explained_variance_mean_of_ratios": "mean of ratios",
    "explained_variance_centred": "centred",
    "ce_loss_score": "CE score",
    "kl_div_score": "KL score",
    "ce_loss_with_sae": "CE with",
    "ce_loss_without_sae": "CE without",
    "kl_div_with_sae": "KL with",
}
_DEFINITIONS = """Explained variance is 1 - E|x - x̂|² / E|x - mean x|² over all tokens; *mean of ratios* is \
E[1 - |x - x̂|² / |x - mean x|²], the mean of the same ratio a token (Kissane et al. 2024); *centred* is \
1 - Σ Var(x - x̂) / Σ Var x, which a constant error does not lower (Minder et al. 2025). CE and KL (nats) are those of \
each model with the reconstruction in place of its activations, against the model itself; a score is 1 if nothing is \
lost and 0 if as much is lost as with zeros in place of the activations. L0 is the mean number of active latents a \
token."""


@dataclass(frozen=True)
class Place:
    """Where a crosscoder lies on the Hub."""

    repo_id: str
    id: str
    revision: str | None = None


def crosscoder_section(bundle: Bundle, place: Place) -> str:
    """The part of a card about one crosscoder, as Markdown."""
    runner_cfg, metrics = bundle.runner_cfg, bundle.metrics
    parts = [f"## {plain(place.id)}", _diffed(bundle), _recipe(bundle, runner_cfg), _data(runner_cfg)]
    parts += [_metrics(metrics), _classes(bundle), _files(bundle, place), _loading(place)]
    return "\n\n".join(part for part in parts if part)


def _diffed(bundle: Bundle) -> str:
    sources, d_sae = bundle.sources, bundle.run.sae.cfg.d_sae
    if sources.combine == "difference":
        what = f"A sparse autoencoder with {d_sae:,} latents on the second source's activations minus the first's:"
    else:
        what = f"A crosscoder with {d_sae:,} latents, one dictionary over {len(sources)} sources side by side:"
    rows: list[Sequence[Cell]] = [
        (source.label, _shown(source.model_name), source.hook_name, source.d_in, source.activation_scale)
        for source in sources
    ]
    columns = ["source", "model", "hook point", "width", "activation scale"]
    note = "The activation scales are folded into the weights: the crosscoder takes raw activations."
    if sources.token_alignment == "character_offsets":
        note += " Each model reads tokens of its own; positions where tokens of all models end together count."
    return f"{what}\n\n{table(columns, rows)}\n\n{note}{_origin(bundle.cfg)}"


def _origin(cfg: Mapping[str, Any]) -> str:
    """Whose crosscoder it is, if it was converted from another system's checkpoint."""
    origin = _mapping(_mapping(cfg.get("metadata")).get("converted_from"))
    if not origin:
        return ""
    place = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in origin.items() if value is not None)
    return f" Converted from a checkpoint of another system ({plain(place)}), whose codes it keeps."


def _recipe(bundle: Bundle, runner_cfg: Mapping[str, Any]) -> str:
    metadata: Mapping[str, Any] = bundle.cfg.get("metadata") or {}
    details: Mapping[str, Any] = metadata.get("training_architecture_details") or {}
    rows: list[Sequence[Cell]] = [("saved as", bundle.cfg.get("architecture"))]
    if metadata.get("training_architecture"):
        rows.insert(0, ("trained as", metadata["training_architecture"]))
    rows += [(name.replace("_", " "), _value(value)) for name, value in details.items() if value not in (None, [], "")]
    rows += [(name, _value(runner_cfg[key])) for key, name in _RECIPE.items() if runner_cfg.get(key) not in (None, "")]
    known: list[Sequence[Cell]] = [(name, str(value)) for name, value in rows if value is not None]
    return f"### Recipe\n\n{table(['setting', 'value'], known)}"


def _data(runner_cfg: Mapping[str, Any]) -> str:
    listed = datasets_of(runner_cfg)
    if not listed:
        return ""
    weights = [entry.get("weight") for entry in listed]
    shares = weights if all(weights) else [1 / len(listed)] * len(listed)
    rows: list[Sequence[Cell]] = [
        (
            entry.get("label") or "",
            _shown(entry.get("path") or ""),
            entry.get("name") or "",
            entry.get("split") or "",
            share,
        )
        for entry, share in zip(listed, shares, strict=True)
    ]
    return f"### Data\n\n{table(['label', 'data set', 'configuration', 'split', 'share of the tokens'], rows)}"


def _metrics(metrics: Mapping[str, Any]) -> str:
    counted = _numbers(metrics)
    words = [f"{counted['n_tokens']:,} held-out tokens"] if "n_tokens" in counted else []
    words += [f"L0 {counted['l0']:.4g}"] if "l0" in counted else []
    words += [f"{counted['dead_latents']:,} latents silent on them"] if "dead_latents" in counted else []
    found = {"all": counted, **{label: _numbers(values) for label, values in _mapping(metrics.get("sources")).items()}}
    columns = {key: name for key, name in _METRICS.items() if any(key in values for values in found.values())}
    rows: list[Sequence[Cell]] = [
        (label, *(values.get(key) for key in columns)) for label, values in found.items() if set(columns) & set(values)
    ]
    parts = [f"{', '.join(words)}."] if words else []
    parts += [table(["source", *columns.values()], rows)] if columns else []
    return "\n\n".join(["### Metrics", *parts, _DEFINITIONS]) if parts else ""


def _mapping(values: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", values) if isinstance(values, Mapping) else {}


def _numbers(values: Any) -> dict[str, int | float]:
    """What was measured; null stands where a measurement gave no number."""
    return {
        name: value
        for name, value in _mapping(values).items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }


def _classes(bundle: Bundle) -> str:
    counts, thresholds = _class_counts(bundle)
    if not counts:
        return ""
    rows: list[Sequence[Cell]] = list(counts.items())
    return f"### Latents by class\n\n{table(['class', 'latents'], rows)}\n\n{plain(thresholds)}."


def _class_counts(bundle: Bundle) -> tuple[dict[str, int], str]:
    """The classes of the published table of latents, or else of the decoder at the default thresholds."""
    path = bundle.report_folder / PARQUET
    if path.is_file():
        latents = LatentTable.load(path)
        if "class" in latents.names and "classes" in latents.thresholds:
            classes = [str(name) for name in latents.column("class").values]
            return class_counts(classes, latents.labels), str(latents.thresholds["classes"])
    sources = bundle.run.sources
    if sources.combine == "difference" or len(sources) < 2:
        return {}, ""
    thresholds = ClassThresholds.for_n_sources(len(sources))
    norms = decoder_norms(bundle.run.sae.W_dec.detach(), sources.widths, sources.activation_scales)
    classes = classify_latents(decoder_norm_shares(norms), thresholds, sources.labels, bundle.run.dead)
    counts = class_counts(classes, sources.labels)
    if bundle.run.dead is None:
        return {name: count for name, count in counts.items() if name != DEAD}, thresholds.describe()
    return counts, f"{thresholds.describe()}; dead: silent at the end of training ({DEAD_LATENTS})"


def _files(bundle: Bundle, place: Place) -> str:
    names = [file.name for file in bundle.files]
    report = (
        f" `{place.id}/{REPORT}` is the report of the diff: download it and open it in a browser."
        if REPORT in names
        else ""
    )
    return f"### Files\n\n{', '.join(f'`{name}`' for name in names)}, in `{place.id}/`.{report}"


def _loading(place: Place) -> str:
    repo_id, id, revision = (json.dumps(text) for text in (place.repo_id, place.id, place.revision or "main"))
    if place.revision in (None, "main"):
        stock = f"sae = SAE.from_pretrained({repo_id}, {id})"
        ours = f"sae = load_crosscoder({repo_id}, {id})"
        imports = "from sae_lens import SAE"
    else:
        imports = "from huggingface_hub import snapshot_download\nfrom sae_lens import SAE"
        pattern = json.dumps(f"{place.id}/*")
        stock = (
            f"folder = snapshot_download({repo_id}, revision={revision}, allow_patterns={pattern})\n"
            f'sae = SAE.load_from_disk(f"{{folder}}/{place.id}")'
        )
        ours = f"sae = load_crosscoder({repo_id}, {id}, revision={revision})"
    return f"""### Load

With SAELens alone (`{SAE_WEIGHTS_FILENAME}` holds a stock SAE over raw activations, the sources side by side):

```python
{imports}

{stock}
```

With `sae-lens-crosscoder`, which also checks the files against `manifest.json`:

```python
from sae_lens_crosscoder import Sources
from sae_lens_crosscoder.hub import load_crosscoder

{ours}
sources = Sources.from_metadata(sae.cfg.metadata)  # which columns belong to which model
```"""


def _shown(name: str) -> str:
    return f"a local one, not published ({name.removeprefix(LOCAL)})" if name.startswith(LOCAL) else name


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
