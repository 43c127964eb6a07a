"""The index of all dashboards: one row a latent, found by number or words, sorted by any column."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from torch import Tensor

from sae_lens_crosscoder.diffing.diff_report import Column
from sae_lens_crosscoder.inline import inline_json, policy_hash


@dataclass(frozen=True)
class IndexEntry:
    """One latent of the index."""

    latent: int
    page: str
    """File that shows it."""

    frequency: float
    """Share of the tokens on which it fires."""


def index_page(title: str, entries: Sequence[IndexEntry], columns: Sequence[Column], notes: str = "") -> str:
    """The document. It makes no request, and draws only the rows that are looked at.

    Args:
        title: Heading.
        entries: The latents, in the order in which the page begins.
        columns: What is shown of them.
        notes: What a reader has to know of the dashboards.
    """
    pages = list(dict.fromkeys(entry.page for entry in entries))
    data: dict[str, Any] = {
        "titles": ["latent", *(column.title for column in columns), "frequency"],
        "meanings": [
            "",
            *(column.meaning for column in columns),
            "Share of the tokens on which the latent fires.",
        ],
        "pages": pages,
        "rows": [
            [e.latent, *(_value(column, e.latent) for column in columns), _rounded(e.frequency), pages.index(e.page)]
            for e in entries
        ],
    }
    style, script = _part("index.css"), _part("index.js")
    parts = {
        "policy": f"default-src 'none'; script-src '{policy_hash(script)}'; style-src '{policy_hash(style)}'; "
        "base-uri 'none'; form-action 'none'",
        "title": html.escape(title),
        "notes": html.escape(notes),
        "style": style,
        "data": inline_json(data),
        "script": script,
    }
    # One pass: what is put in is not looked at again, whatever it holds.
    return re.sub(r"<!--(\w+)-->", lambda match: parts[match[1]], _part("index.html"))


def _value(column: Column, latent: int) -> str | float | None:
    value = column.values[latent]
    return _rounded(float(value)) if isinstance(value, Tensor) else value


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if abs(value) < float("inf") else None


def _part(name: str) -> str:
    return (files("sae_lens_crosscoder.dashboards") / "index_parts" / name).read_text(encoding="utf-8")
