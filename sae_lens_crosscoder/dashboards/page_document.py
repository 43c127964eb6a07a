"""sae-dashboard's page as one document that asks for nothing: scripts inside, data that cannot end them, a policy."""

from __future__ import annotations

import html
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from sae_lens_crosscoder.errors import MissingDependencyError
from sae_lens_crosscoder.inline import policy_hash

_D3 = '<script src="https://d3js.org/d3.v6.min.js"></script>'
_PLOTLY = '<script src="https://cdn.plot.ly/plotly-latest.min.js"></script>'
_OWN_SCRIPT = """
function escaped(text) {
    const places = {"&": "&amp;", "<": "&lt;", ">": "&gt;"};
    return text.replace(/[&<>]/g, character => places[character]);
}

document.addEventListener("DOMContentLoaded", () => {
    const main = document.getElementById("main");
    const select = document.getElementById("select-0");
    const order = main.dataset.order.split(",");
    if (select) {
        // sae-dashboard lists them by number.
        const [chosen, options] = [select.value, new Map([...select.options].map(option => [option.value, option]))];
        select.append(...order.map(latent => options.get(latent)));
        select.value = chosen;
        select.setAttribute("aria-label", "Latent");
        select.addEventListener("change", () => location.replace("#" + select.value));
    }
    function show() {
        const wanted = location.hash.slice(1);
        if (select && select.value !== wanted && [...select.options].some(option => option.value === wanted)) {
            select.value = wanted;
            select.dispatchEvent(new Event("change"));
        }
        main.dataset.view = select ? select.value : order[0];
    }
    window.addEventListener("hashchange", show);
    show();
});
"""
_STYLE = """
/* Columns that do not fit into the window stand below, so that contexts are never out of sight. */
.grid-container { display: flex; flex-wrap: wrap; align-items: flex-start; row-gap: 24px; }
.grid-column { max-height: none; max-width: calc(100% - 20px); box-sizing: border-box; }
.seq { white-space: normal; }
.token, code { font-family: Consolas, Menlo, Monaco, monospace; }
h3 + table td { white-space: normal; overflow-wrap: anywhere; }
"""
_LICENCES = """
This page holds scripts and styles of sae-dashboard (MIT), plotly.js (MIT, Copyright Plotly, Inc.) and d3-selection
(ISC):

{d3}
"""
_READ_DATA = """return {
        "AGGDATA": {}, "DASHBOARD_DATA": JSON.parse(document.getElementById("data").textContent)
    };"""
_BEFORE_DATA = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
</head>
<!--{licences}-->
<body>
<p style="font-family: system-ui; margin: 12px 10px"><a href="index.html">All latents</a> · {title}</p>
<script type="application/json" id="data">"""
_AFTER_DATA = """</script>
<main id="main" data-order="{order}">
{content}
</main>
<style>{style}</style>
<script>{script}</script>
</body>
</html>
"""


def document(
    title: str, skeleton: Any, keys: Sequence[str], kinds: Iterable[str], columns: Mapping[int, Any]
) -> tuple[str, str]:
    """sae-dashboard's page, as what stands before its data and what stands after them.

    The data between are one JSON object by key, in a form that cannot end its element (`inline_json`). The page opens
    at the first key, or at the one that its address names (`#17`), and offers the keys in their order. Values of logits
    are shown as they stand in the data, and what sae-dashboard does not measure here (the effect of a latent on the
    loss) is left out.

    Args:
        title: Title of the page.
        skeleton: sae-dashboard's `HTML` with the places that the data fill.
        keys: What a reader chooses by.
        kinds: The kinds of data that every key has.
        columns: sae-dashboard's `Column` of each column.

    Raises:
        MissingDependencyError: A sae-dashboard that writes another page than the one known here.
    """
    # Only the kinds of data stand in what sae-dashboard writes: the data themselves stand in an element of their own.
    skeleton.js_data = {"AGGDATA": {}, "DASHBOARD_DATA": {keys[0]: dict.fromkeys(kinds, 0)}}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        skeleton.get_html(layout_columns=columns, layout_height=None, filename=file, first_key=keys[0])
        # sae-dashboard copies its UTF-8 files in the encoding of the locale, so the bytes are UTF-8 in any case.
        content = file.read_bytes().decode("utf-8")
    content = _replaced(content, "<code>${tok}</code>", "<code>${escaped(tok)}</code>", 3)
    content = _replaced(content, "`|${tok}|<br>", "`|${escaped(tok)}|<br>", 1)
    content = _replaced(content, "d.value.toFixed(2)", "d.value", 1)
    content = _replaced(content, 'firstTable.append("tr").html(lossRow);', "", 1)
    content = _replaced(content, "Feature not active on prev token;<br>no predictions were affected.", "", 1)
    content = _replaced(content, "prevTokenActive ? 270 : 160", "80", 1)
    content = _replaced(content, f"return {json.dumps(skeleton.js_data)};", _READ_DATA, 1)
    scripts = re.findall(r"<script>(.*?)</script>", content, re.DOTALL)
    for place, script in ((_D3, _vendored("d3-selection.min.js")), (_PLOTLY, get_plotlyjs())):
        content = _replaced(content, place, f"<script>{script}</script>", 1)
        scripts.append(script)
    hashes = " ".join(f"'{policy_hash(script)}'" for script in (*scripts, _OWN_SCRIPT))
    before = _BEFORE_DATA.format(
        # Its own scripts by their contents, so that no attribute of an element that a token makes can run; no request.
        policy=f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'",
        title=html.escape(title),
        licences=_LICENCES.format(d3=_vendored("LICENSE")),
    )
    order = html.escape(",".join(keys))
    return before, _AFTER_DATA.format(order=order, content=content, style=_STYLE, script=_OWN_SCRIPT)


def _replaced(text: str, old: str, new: str, n: int) -> str:
    if text.count(old) != n:
        raise MissingDependencyError(
            "This sae-dashboard writes another page than version 0.8, for which dashboards are made: pip install "
            '"sae-dashboard>=0.8,<0.9"'
        )
    return text.replace(old, new)


def _vendored(name: str) -> str:
    folder = files("sae_lens_crosscoder.dashboards") / "vendored" / "d3-selection"
    return (folder / name).read_text(encoding="utf-8")
