"""The page put together from its parts: template, style, scripts and data in one document."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from sae_lens_crosscoder.inline import inline_json, policy_hash

_SCRIPTS = (
    "data.js",
    "text.js",
    "dom.js",
    "filter.js",
    "table.js",
    "columns.js",
    "axis.js",
    "histogram.js",
    "scatter.js",
    "overview.js",
    "latent.js",
    "kl.js",
    "main.js",
)
"""In the order of use: they share one scope."""


def assemble(title: str, manifest: Mapping[str, Any], blocks: Mapping[str, str]) -> str:
    """The document. Its policy allows exactly its own script and style, no other, and no request of any kind."""
    style = _part("page.css")
    script = '"use strict";\n{\n' + "\n".join(_part(name) for name in _SCRIPTS) + "}\n"
    data = [f'<script type="application/json" id="manifest">{inline_json(manifest)}</script>']
    data += [f'<script type="text/plain" id="block-{name}">{content}</script>' for name, content in blocks.items()]
    policy = (
        f"default-src 'none'; script-src '{policy_hash(script)}'; style-src '{policy_hash(style)}'; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'"
    )
    parts = {
        "policy": policy,
        "title": html.escape(title.encode("utf-8", "backslashreplace").decode()),
        "style": style,
        "data": "\n".join(data),
        "script": script,
    }
    # One pass: what is put in is not looked at again, whatever it holds.
    return re.sub(r"<!--(\w+)-->", lambda match: parts[match[1]], _part("page.html"))


def _part(name: str) -> str:
    return (files("sae_lens_crosscoder.diffing.diff_report") / "page" / name).read_text(encoding="utf-8")
