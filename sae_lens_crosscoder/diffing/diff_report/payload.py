"""A report as the page reads it: a manifest of words and places, and blocks of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sae_lens_crosscoder.diffing.classes import class_names
from sae_lens_crosscoder.diffing.diff_report.blocks import Blocks, in_steps, smallest_index_type
from sae_lens_crosscoder.diffing.diff_report.column import Column
from sae_lens_crosscoder.diffing.diff_report.evidence import PADDING, Contexts, Evidence, KLDocument, LogitLens
from sae_lens_crosscoder.diffing.diff_report.latent_table import LatentTable
from sae_lens_crosscoder.diffing.diff_report.overview import Overview
from sae_lens_crosscoder.diffing.report import Cell, ReportTable


def payload(
    title: str,
    table: LatentTable,
    overview: Overview,
    evidence: Evidence,
    metadata: Mapping[str, str | int | float],
) -> tuple[dict[str, Any], dict[str, str]]:
    """The manifest (JSON) and the encoded blocks ("table", "contexts", "lens", "kl", as far as there is something)."""
    blocks = Blocks()
    manifest: dict[str, Any] = {
        "title": title,
        "labels": list(table.labels),
        "classes": list(class_names(table.labels)),
        "d_sae": table.d_sae,
        "thresholds": _pairs(table.thresholds),
        "metadata": _pairs(metadata),
        "paragraphs": list(overview.paragraphs),
        "key_figures": [[key.title, _finite(key.value), key.meaning] for key in overview.key_figures],
        "tables": [_table(table) for table in overview.tables],
        "histograms": list(overview.histograms),
        "scatter": overview.scatter,
        "columns": [_add_column(blocks, column, class_names(table.labels)) for column in table.columns],
        "strings": [evidence.tokens[token] for token in evidence.token_ids],
    }
    index = _TokenIndex(evidence)
    if evidence.contexts is not None:
        manifest["contexts"] = _add_contexts(blocks, evidence.contexts, index)
    manifest["lens"] = {
        label: _add_lens(blocks, f"{position}", lens, index)
        for position, (label, lens) in enumerate(evidence.logit_lens.items())
    }
    manifest["documents"] = [
        _add_document(blocks, f"{position}", document, index) for position, document in enumerate(evidence.kl_documents)
    ]
    manifest["arrays"] = blocks.places
    return manifest, blocks.encoded()


class _TokenIndex:
    """Token ids as positions among the strings of the page, counted from 1; 0 is padding."""

    def __init__(self, evidence: Evidence) -> None:
        self._ids = torch.tensor(evidence.token_ids, dtype=torch.long)
        self._dtype = smallest_index_type(len(self._ids) + 1)

    def __call__(self, token_ids: Tensor) -> Tensor:
        ids = token_ids.cpu().long()
        found = torch.searchsorted(self._ids, ids) + 1
        return found.where(ids != PADDING, torch.zeros_like(found)).to(self._dtype)


def _add_column(blocks: Blocks, column: Column, classes: Sequence[str]) -> dict[str, Any]:
    described = {
        "name": column.name,
        "title": column.title,
        "meaning": column.meaning,
        "group": column.group,
        "format": column.format,
        "scale": column.scale,
        "shown": column.shown,
    }
    if not isinstance(column.values, Tensor):
        # Classes keep the order of reports, and with it their colours.
        found = dict.fromkeys(column.values)
        names = list(classes) if set(found) <= set(classes) else list(found)
        values = _codes(column.values, names).to(smallest_index_type(len(names)))
        described |= {"kind": "text", "names": names}
    else:
        values = column.values
        kind = "flag" if values.dtype == torch.bool else "number" if values.is_floating_point() else "integer"
        described["kind"] = kind
        # Counts of tokens outgrow 32 bits; doubles hold them exactly.
        values = values.to({"flag": torch.uint8, "integer": torch.float64, "number": torch.float32}[kind])
    blocks.add("table", column.name, values)
    return described


def _add_contexts(blocks: Blocks, contexts: Contexts, index: _TokenIndex) -> dict[str, Any]:
    latents = contexts.latents.cpu().long()
    # NaN and padding are shown as no activation.
    shown = torch.where(contexts.token_ids != PADDING, contexts.activations, 0.0).cpu().float().nan_to_num(0.0)
    peaks = shown.abs().amax(dim=1) if shown.numel() else shown.new_zeros(len(shown))
    largest = torch.zeros(int(latents.max()) + 1 if len(latents) else 0).scatter_reduce(0, latents, peaks, "amax")
    names = list(dict.fromkeys(contexts.datasets))
    blocks.add("contexts", "latents", latents.to(torch.int32))
    blocks.add("contexts", "datasets", _codes(contexts.datasets, names).to(torch.int32))
    blocks.add("contexts", "tokens", index(contexts.token_ids))
    blocks.add("contexts", "peaks", shown.amax(dim=1) if shown.numel() else peaks)
    blocks.add("contexts", "largest", largest[latents])
    blocks.add("contexts", "steps", in_steps(shown, largest[latents][:, None]))
    return {"datasets": names, "width": contexts.token_ids.shape[1]}


def _add_lens(blocks: Blocks, name: str, lens: LogitLens, index: _TokenIndex) -> dict[str, Any]:
    blocks.add("lens", f"{name}.latents", lens.latents.to(torch.int32))
    for side, ids, values in (
        ("top", lens.top_ids, lens.top_values),
        ("bottom", lens.bottom_ids, lens.bottom_values),
    ):
        blocks.add("lens", f"{name}.{side}_tokens", index(ids))
        blocks.add("lens", f"{name}.{side}_values", values.float())
    return {"key": name, "k": lens.top_ids.shape[1]}


def _add_document(blocks: Blocks, name: str, document: KLDocument, index: _TokenIndex) -> dict[str, Any]:
    kl, attributions = document.kl.cpu().float(), document.attributions.cpu().float().nan_to_num(0.0)
    largest = attributions.abs().amax(dim=1)
    counted = kl[~kl.isnan()]
    blocks.add("kl", f"{name}.tokens", index(document.token_ids))
    blocks.add("kl", f"{name}.kl", kl)
    blocks.add("kl", f"{name}.next_tokens", index(document.top_ids))
    probabilities = (document.top_probabilities.cpu().float().clamp(0, 1) * 65535).round()
    blocks.add("kl", f"{name}.next_probabilities", probabilities.to(torch.int32).to(torch.uint16))
    blocks.add("kl", f"{name}.largest", largest)
    blocks.add("kl", f"{name}.steps", in_steps(attributions, largest[:, None]))
    return {
        "dataset": document.dataset,
        "n_tokens": len(kl),
        "n_next": document.top_ids.shape[2],
        "total": _finite(float(counted.sum())),
        "mean": _finite(float(counted.mean())) if len(counted) else None,
        "max": _finite(float(counted.max())) if len(counted) else None,
        "latents": document.latents.tolist(),
        "attributions": [_finite(value) for value in attributions.sum(dim=1).tolist()],
    }


def _codes(values: Sequence[str], names: Sequence[str]) -> Tensor:
    code_of = {name: code for code, name in enumerate(names)}
    return torch.tensor([code_of[value] for value in values], dtype=torch.long)


def _table(table: ReportTable) -> dict[str, Any]:
    rows = [[_finite(cell) for cell in row] for row in table.rows]
    return {"title": table.title, "note": table.note, "columns": list(table.columns), "rows": rows}


def _pairs(values: Mapping[str, str | int | float]) -> list[tuple[str, str | int | float | None]]:
    return [(name, _finite(value)) for name, value in values.items()]


def _finite(value: Cell) -> str | int | float | None:
    """JSON has no NaN and no infinity; the page shows a dash."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
