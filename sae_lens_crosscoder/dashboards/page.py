"""The page of some latents, put together from sae-dashboard's components: one column of logits for every source."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from sae_lens_crosscoder.dashboards._sae_dashboard import (
    HTML,
    ActsHistogramConfig,
    Column,
    FeatureTablesConfig,
    LogitsHistogramConfig,
    LogitsTableConfig,
    SequencesConfig,
)
from sae_lens_crosscoder.dashboards.contexts import cut_contexts
from sae_lens_crosscoder.dashboards.lenses import Lens
from sae_lens_crosscoder.dashboards.page_document import document
from sae_lens_crosscoder.dashboards.reading import LatentReadings
from sae_lens_crosscoder.dashboards.subject import DashboardConfig
from sae_lens_crosscoder.inline import inline_json

# In pixels; two sources stand side by side in a window of 1,280.
_LATENT_WIDTH, _SOURCE_WIDTH = 340, 395


def page(
    readings: LatentReadings, lenses: Sequence[Lens], facts: Mapping[int, Mapping[str, str]], config: DashboardConfig
) -> Iterator[str]:
    """The HTML document of the latents, which needs no network, in pieces: a whole one holds megabytes.

    Args:
        readings: What was read.
        lenses: The sources.
        facts: What is known of each latent, by its title.
        config: How much is shown.
    """
    latents = [str(latent) for latent in readings.latents]
    parts = (_latent(readings, latent, lenses, facts, config) for latent in readings.latents)
    first = next(parts)
    # The column of the latent, those of the sources, that of the contexts.
    widths = [_LATENT_WIDTH, *[_SOURCE_WIDTH] * len(lenses), None]
    columns = {i: Column(width=width) for i, width in enumerate(widths)}
    labels = ", ".join(lens.source.label for lens in lenses)
    title = f"{_named(readings.latents)}: {labels}"
    before, after = document(title, HTML(first.html_data), latents, first.js_data, columns)
    yield before
    sign = "{"
    for latent, part in zip(latents, chain([first], parts), strict=True):
        yield f"{sign}{inline_json(latent)}:{inline_json(part.js_data)}"
        sign = ","
    yield "}"
    yield after


def _named(latents: Sequence[int]) -> str:
    first, last = min(latents), max(latents)
    if first == last:
        return f"Latent {first}"
    return f"Latents {first} to {last}" if last - first + 1 == len(latents) else f"{len(latents)} latents"


def _latent(
    readings: LatentReadings,
    latent: int,
    lenses: Sequence[Lens],
    facts: Mapping[int, Mapping[str, str]],
    config: DashboardConfig,
) -> Any:
    features = [by_latent[latent] for by_latent in readings.by_source]
    part = _column(0, "latent", _heading(f"Latent {latent}", facts.get(latent, {})))
    # Tokens of contexts are the first source's; hovering over them marks the histograms with the suffix 0.
    decode = lenses[0].tokens.shown
    part += features[0].acts_histogram_data._get_html_data(ActsHistogramConfig(), decode, "0", 0)
    tables = features[0].feature_tables_data
    together = replace(tables, neuron_alignment_indices=[], correlated_neurons_indices=[])
    part += together._get_html_data(FeatureTablesConfig(), decode, "latents", 0)
    for i, (lens, feature) in enumerate(zip(lenses, features, strict=True)):
        part += _source(i, lens, feature, latent, config)
    sequences = SequencesConfig(
        buffer=(config.tokens_before, config.tokens_after),
        n_quantiles=config.n_intervals,
        top_acts_group_size=config.n_top_contexts,
        quantile_group_size=config.n_contexts_per_interval,
        stack_mode="stack-quantiles",
    )
    contexts = cut_contexts(features[0].sequence_data, config)
    return part + contexts._get_html_data(sequences, decode, "0", 1 + len(lenses))


def _source(i: int, lens: Lens, feature: Any, latent: int, config: DashboardConfig) -> Any:
    """One source's column: heading, logits table, logits histogram, neurons."""
    table = feature.logits_table_data
    largest = max(map(abs, [*table.top_logits, *table.bottom_logits]))
    source = lens.source
    about = {
        "model": source.model_name,
        "read at": source.hook_name,
        "decoder norm": f"{float(lens.norms[latent]):.3g}",
    }
    part = _column(1 + i, f"source-{i}", _heading(source.label, about))
    # Without a guard sae-dashboard divides by the largest logit when that is 0.
    safe = table if largest else replace(table, top_logits=[1.0] * len(table.top_logits))
    logits = safe._get_html_data(LogitsTableConfig(config.n_logits), lens.tokens.shown, str(i), 1 + i)
    shown = logits.js_data["logitsTableData"][str(i)]
    for rows, values in ((shown["posLogits"], table.top_logits), (shown["negLogits"], table.bottom_logits)):
        for row, value in zip(rows, values, strict=True):
            row["value"] = f"{value:.3g}"
            row["color"] = row["color"] if largest else "transparent"
    part += logits
    part += feature.logits_histogram_data._get_html_data(LogitsHistogramConfig(), lens.tokens.shown, str(i), 1 + i)
    tables = replace(feature.feature_tables_data, correlated_features_indices=[])
    return part + tables._get_html_data(FeatureTablesConfig(), lens.tokens.shown, str(i), 1 + i)


def _column(column: int, key: str, title: str) -> Any:
    # Text that stands in a column is wiped when another latent is chosen; titles come from the data.
    return HTML({column: f"<div id='column-{key}-title'></div>\n"}, {"gridColumnTitlesData": {key: title}})


def _heading(title: str, facts: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><td class='left-aligned'>{html.escape(name)}</td><td class='right-aligned'>{html.escape(text)}</td></tr>"
        for name, text in facts.items()
    )
    return f"<h3>{html.escape(title)}</h3><table class='table-left'>{rows}</table><br>"
