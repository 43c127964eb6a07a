"""The pages and their index, opened in a headless Chromium with no network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromium
import pytest
from chromium import Chromium
from dashboard_subjects import CONSTANT, D_SAE, DEAD, SECOND_ONLY, TINY, needs_sae_dashboard, subject
from helpers import fresh_tokenizer

from sae_lens_crosscoder.dashboards import DashboardConfig, DashboardSubject

pytestmark = needs_sae_dashboard
needs_browser = pytest.mark.skipif(chromium.EXECUTABLE is None, reason="No Chromium is installed")

IMAGE = "<img src=x onerror='window.broken=1'>"
HOSTILE = [
    "</script>",
    "<img src=x onerror='window.broken=1'>",
    "<!--<script>",
    "&lt;b&gt;",
    "\u2028",
    "'\"`${1}\\",
    "é ☃",
]
CONFIG = DashboardConfig(n_latents_per_page=9, n_top_contexts=12)
# The dead latent first: the page's places must not be those of a latent that shows nothing.
LATENTS = [DEAD, 0, SECOND_ONLY, CONSTANT, TINY, *range(7, 15)]


class HostileTokenizer:
    """A tokenizer some of whose tokens are markup."""

    def __init__(self) -> None:
        self._inner = fresh_tokenizer()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def decode(self, ids: list[int]) -> str:
        return HOSTILE[ids[0] % 10] if ids[0] % 10 < len(HOSTILE) else self._inner.decode(ids)


def hostile_subject() -> DashboardSubject:
    return subject(tokenizer=HostileTokenizer())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sae_lens_crosscoder.dashboards import write_dashboards

    return write_dashboards(hostile_subject(), LATENTS, tmp_path_factory.mktemp("dashboards"), CONFIG).parent


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    browser = Chromium(tmp_path_factory.mktemp("profile"), size=(1800, 1000))
    yield browser
    browser.close()


@pytest.fixture
def silent(chrome: Chromium) -> Iterator[Chromium]:
    """The browser; whatever a test does, pages stay silent and ask for nothing but files of their folder."""
    chrome.problems.clear()
    chrome.requests.clear()
    yield chrome
    assert chrome.problems == []
    assert all(url.startswith(("file:", "about:")) for url in chrome.requests)


def table(page: Chromium, source: int, side: str = "positive") -> list[list[str]]:
    rows = f"[...document.querySelectorAll('#logits-table-{source} .{side} tr')]"
    return page.run(f"{rows}.map(row => [...row.children].map(cell => cell.textContent))")


def choose(page: Chromium, latent: int) -> None:
    page.run(
        f"(s => {{ s.value = '{latent}'; s.dispatchEvent(new Event('change')); }})(document.querySelector('select'))"
    )
    page.wait(f"document.getElementById('main').dataset.view === '{latent}'")


def shown(token: str) -> str:
    return token.replace("\u2060", "")


@needs_browser
def test_choosing_a_latent_changes_both_tables_headings_histograms_and_contexts(silent: Chromium, folder: Path) -> None:
    made = hostile_subject()
    silent.open(folder / "latents-0.html")
    seen: list[Any] = []
    for latent in (0, 7, TINY):
        choose(silent, latent)
        tables = [table(silent, 0), table(silent, 1)]
        for position in (0, 1):
            columns = made.joint.sources.columns(made.joint.sources.labels[position])
            logits = made.sae.W_dec[latent, columns].detach() @ made.joint.source_models[position].W_U
            top = logits.topk(10)
            # In the same units for every source, however small, so that the two can be compared.
            assert [float(value) for _, value in tables[position]] == pytest.approx(top.values.tolist(), rel=6e-3)
            strings = [made.joint.tokenizer.decode([i]) for i in top.indices.tolist()]
            plain = [i for i, text in enumerate(strings) if text.isprintable()]
            assert [shown(tables[position][i][0]) for i in plain] == [strings[i] for i in plain]
        heading = silent.run("document.querySelector('#column-latent-title').innerText")
        assert f"Latent {latent}" in heading
        assert "relative norm" in heading
        bars = silent.run("document.querySelectorAll('#histogram-logits-1 .bars path').length")
        assert bars > 10
        contexts = silent.run("document.getElementById('seq-group-3-0').innerText")
        seen.append((tables[0], tables[1], heading, contexts))
    for i in range(4):
        assert len({json.dumps(part[i]) for part in seen}) == 3


@needs_browser
def test_contexts_of_a_latent_show_its_strongest_token_in_bold(silent: Chromium, folder: Path) -> None:
    silent.open(folder / "latents-0.html", "#7")
    bold = "[...document.querySelectorAll('#seq-group-3-0 .seq')].map(seq => [...seq.querySelectorAll('.token')].filter"
    counts = silent.run(f"{bold}(t => t.style.fontWeight === 'bold').length)")
    assert counts == [1] * 12
    title = silent.run("document.querySelector('#seq-group-3-0 h4').textContent")
    assert title.startswith("TOP ACTIVATIONS")


@needs_browser
def test_latents_stand_in_the_order_that_was_asked_for(silent: Chromium, folder: Path) -> None:
    silent.open(folder / "latents-0.html")
    offered = silent.run("[...document.querySelectorAll('#select-0 option')].map(option => option.value)")
    assert offered == [str(latent) for latent in LATENTS[:9]]
    assert silent.run("document.getElementById('select-0').value") == str(DEAD)
    assert silent.run("document.title") == "9 latents: base, chat"


@needs_browser
@pytest.mark.parametrize("width", [1280, 1600, 1800])
def test_the_strongest_tokens_are_in_sight_without_scrolling_to_the_side(
    silent: Chromium, folder: Path, width: int
) -> None:
    silent.resize(width, 1000)
    silent.open(folder / "latents-0.html", "#0")
    bold = "[...document.querySelectorAll('.token')].filter(token => token.style.fontWeight === 'bold')"
    boxes = silent.run(f"{bold}.map(token => [token.getBoundingClientRect().x, token.getBoundingClientRect().right])")
    assert len(boxes) > 12
    assert all(0 < left < right < width for left, right in boxes)
    tables = silent.run(
        "[0, 1].map(i => document.getElementById(`logits-table-${i}`).getBoundingClientRect()).map(b => [b.x, b.right])"
    )
    assert tables[0][1] <= tables[1][0]
    assert tables[1][1] < width


@needs_browser
def test_a_tooltip_says_only_what_was_measured(silent: Chromium, folder: Path) -> None:
    silent.open(folder / "latents-0.html", "#7")
    tooltip = silent.run("document.querySelector('#seq-group-3-0 .tooltip').textContent")
    assert "Feature activation" in tooltip
    assert "oss" not in tooltip
    assert "prev" not in tooltip


@needs_browser
@pytest.mark.parametrize("latent", [DEAD, SECOND_ONLY, CONSTANT])
def test_latents_that_sae_dashboard_breaks_on_are_shown(silent: Chromium, folder: Path, latent: int) -> None:
    silent.open(folder / "latents-0.html", f"#{latent}")
    assert silent.run("document.getElementById('main').dataset.view") == str(latent)
    assert len(table(silent, 0)) == len(table(silent, 1)) == 10
    if latent == SECOND_ONLY:
        assert {value for _, value in table(silent, 0)} == {"0"}
    choose(silent, 0)
    assert silent.run("document.querySelectorAll('[id^=seq-group] .seq').length") > 20


@needs_browser
def test_tokens_that_are_markup_stay_text_even_in_tooltips(silent: Chromium, folder: Path) -> None:
    silent.open(folder / "latents-0.html", "#0")
    everything = silent.run("document.getElementById('main').textContent")
    for token in ("</script>", IMAGE, "<!--<script>"):
        assert token in everything
    assert silent.run("document.querySelectorAll('.tooltip').length") > 100
    silent.point_at("#seq-group-3-0 .token:not(:empty)")
    assert silent.run("document.querySelectorAll('#main img').length") == 0
    assert silent.run("window.broken === undefined")


@needs_browser
def test_the_index_finds_sorts_and_links(silent: Chromium, folder: Path) -> None:
    silent.open(folder / "index.html")
    rows = "[...document.querySelectorAll('tbody tr')].map(row => row.children[0].textContent)"
    assert silent.run(rows) == [str(latent) for latent in LATENTS]
    silent.run("document.getElementById('search').focus()")
    silent.type("chat-only")
    assert silent.run(rows) == [str(SECOND_ONLY)]
    silent.run("document.getElementById('search').value = ''")
    silent.type("1")
    assert set(silent.run(rows)) == {str(latent) for latent in LATENTS if str(latent).startswith("1")}
    silent.run("document.getElementById('search').select()")
    silent.type(" ")
    silent.point_at("th:last-child button", click=True)
    assert silent.run(rows)[0] == str(CONSTANT)
    silent.point_at("th:last-child button", click=True)
    assert silent.run(rows)[0] == str(DEAD)
    silent.point_at("tbody tr:first-child a", click=True)
    silent.wait("document.getElementById('main')?.dataset.view === '3'")
    assert "Latent 3" in silent.run("document.querySelector('#column-latent-title').innerText")
    silent.point_at("a[href='index.html']", click=True)
    silent.wait("document.getElementById('search') !== null")


@needs_browser
def test_an_index_of_16384_latents_opens_at_once_and_draws_what_is_looked_at(silent: Chromium, tmp_path: Path) -> None:
    import torch

    from sae_lens_crosscoder.dashboards.index_page import IndexEntry, index_page
    from sae_lens_crosscoder.diffing.diff_report import Column

    n = 16_384
    norm = Column("relative_norm", torch.rand(n), "relative norm", "</script>", "")
    names = Column("class", ["shared </script>"] * n, "class", "", "")
    entries = [IndexEntry(i, f"latents-{i // 128}.html", 1 / (i + 1)) for i in range(n)]
    (tmp_path / "index.html").write_text(index_page("All <b>", entries, [names, norm]), encoding="utf-8")
    assert (tmp_path / "index.html").stat().st_size < 1_500_000
    assert silent.open(tmp_path / "index.html") < 10
    assert silent.run("document.querySelectorAll('tbody tr').length") == 500
    assert silent.run("document.querySelector('h1').textContent") == "All <b>"
    silent.run("document.getElementById('search').focus()")
    silent.type("16383")
    assert silent.run("document.querySelector('tbody a').getAttribute('href')") == "latents-127.html#16383"


@needs_browser
def test_a_page_of_one_latent_and_of_three_sources_opens(silent: Chromium, tmp_path: Path) -> None:
    from sae_lens_crosscoder.dashboards import write_dashboards

    write_dashboards(subject(widths=(16, 24, 16)), [7], tmp_path, CONFIG)
    silent.open(tmp_path / "latents-0.html")
    titles = silent.run("[0, 1, 2].map(i => document.querySelector(`#column-source-${i}-title h3`).textContent)")
    assert titles == ["base", "chat", "third"]
    assert len({json.dumps(table(silent, i)) for i in range(3)}) == 3


def test_pages_are_complete_documents_that_name_no_address(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "dashboards.json",
        "index.html",
        "latents-0.html",
        "latents-1.html",
    ]
    page = (folder / "latents-0.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert (
        re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", page.partition("<body>")[2].partition("<script>")[0])
        == []
    )
    assert '<script src="http' not in page
    assert "default-src 'none'" in page
    assert "Permission to use, copy, modify" in page


def test_a_difference_and_a_folded_norm_are_said(tmp_path: Path) -> None:
    from sae_lens_crosscoder.dashboards import write_dashboards

    config = DashboardConfig(fold_final_norm=True)
    index = write_dashboards(subject(combine="difference"), range(D_SAE), tmp_path, config).read_text(encoding="utf-8")
    assert "difference chat minus base" in index
    assert "and with the weights of its final norm" in index


def test_a_stopped_call_goes_on_and_another_crosscoder_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens_crosscoder.dashboards import write_dashboards, writing

    calls: list[list[int]] = []
    read = writing.read_latents

    def stopping(*arguments: Any) -> Any:
        calls.append(arguments[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read(*arguments)

    monkeypatch.setattr(writing, "read_latents", stopping)
    made = subject()
    with pytest.raises(KeyboardInterrupt):
        write_dashboards(made, LATENTS, tmp_path, CONFIG)
    assert not (tmp_path / "index.html").exists()
    first = (tmp_path / "latents-0.html").stat().st_mtime_ns
    write_dashboards(made, LATENTS, tmp_path, CONFIG)
    assert [len(chunk) for chunk in calls] == [9, 4, 4]
    assert (tmp_path / "latents-0.html").stat().st_mtime_ns == first
    write_dashboards(subject("jumprelu"), LATENTS[:3], tmp_path, CONFIG)
    assert calls[3:] == [LATENTS[:3]]
    assert not (tmp_path / "latents-1.html").exists()


def test_pages_are_made_anew_in_the_tokens_of_another_tokenizer(tmp_path: Path) -> None:
    from sae_lens_crosscoder.dashboards import write_dashboards

    def written(made: DashboardSubject) -> str:
        write_dashboards(made, [0], tmp_path, CONFIG)
        return (tmp_path / "latents-0.html").read_text(encoding="utf-8")

    mark = json.dumps(HOSTILE[0]).replace("<", "\\u003c").strip('"')
    assert mark not in written(subject())
    assert mark in written(hostile_subject())


def test_no_index_of_older_pages_stays_while_others_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_lens_crosscoder.dashboards import write_dashboards, writing

    def stopping(*_: Any) -> Any:
        raise KeyboardInterrupt

    write_dashboards(subject(), LATENTS[:3], tmp_path, CONFIG)
    monkeypatch.setattr(writing, "read_latents", stopping)
    assert write_dashboards(subject(), LATENTS[:3], tmp_path, CONFIG).is_file()
    with pytest.raises(KeyboardInterrupt):
        write_dashboards(subject(), LATENTS[3:6], tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["dashboards.json"]
