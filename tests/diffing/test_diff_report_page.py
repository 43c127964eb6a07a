"""The page of a diff report, opened in a headless Chromium: silent, offline, usable by mouse and keyboard, fast."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import chromium
import pytest
from chromium import Chromium
from synthetic_report import HOSTILE, LABELS, make_report, make_table
from torch import Tensor

from sae_lens_crosscoder.diffing.diff_report import DiffReport, LatentTable

needs_browser = pytest.mark.skipif(chromium.EXECUTABLE is None, reason="No Chromium is installed")

REPORT = make_report()

_SPELT = {
    "\n": "⏎",
    "\t": "⇥",
    "\x00\x1b": "\\x00\\x1b",
    "\ud800": "\\ud800",
    "\u202egnp": "\\u202egnp",
}


def alone(token: str) -> str:
    """How the page spells a token in lists."""
    return _SPELT.get(token, token.replace(" ", "␣")) or "(empty)"


def values(table: LatentTable, name: str) -> Tensor:
    column = table.column(name).values
    assert isinstance(column, Tensor)
    return column


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return REPORT.save(tmp_path_factory.mktemp("report"))["report"]


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    browser = Chromium(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def page(chrome: Chromium, path: Path) -> Iterator[Chromium]:
    """The page, freshly opened; whatever a test does to it, it stays silent and asks for nothing."""
    chrome.resize(1280, 900)
    chrome.problems.clear()
    chrome.requests.clear()
    chrome.open(path)
    yield chrome
    assert chrome.problems == []
    assert {url.partition("#")[0] for url in chrome.requests} == {path.resolve().as_uri()}


def texts(page: Chromium, selector: str) -> list[str]:
    return page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(node => node.textContent)")


def go(page: Chromium, address: str, until: str) -> None:
    page.run(f"location.hash = {json.dumps(address)}")
    page.wait(f"document.querySelector({json.dumps(until)}) !== null")


def filter_by(page: Chromium, text: str) -> None:
    page.run("document.getElementById('filter').select()")
    page.type(text)


def first_rows(page: Chromium, n: int) -> list[int]:
    return [int(text) for text in texts(page, ".latents tbody tr[data-latent] td:first-child")[:n]]


# ------------------------------------------------------------------------------------------------ the file


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.attributes += attrs


def test_no_string_reaches_the_markup_of_the_page():
    hostile = DiffReport(REPORT.table, REPORT.overview, REPORT.evidence, HOSTILE[0], {HOSTILE[0]: HOSTILE[1]})
    page, clean = Tags(hostile.to_html()), Tags(DiffReport(make_table(5)).to_html())
    of_data = [tag for tag in page.found if tag != "script"]
    assert of_data == [tag for tag in clean.found if tag != "script"]
    # One script each for the manifest, the four blocks and the code; without evidence there is one block.
    assert (page.found.count("script"), clean.found.count("script")) == (6, 3)


def test_the_page_names_nothing_that_could_be_loaded():
    page = Tags(REPORT.to_html())
    assert not {"link", "iframe", "img", "object", "embed", "base"} & set(page.found)
    assert not [
        value for name, value in page.attributes if name in ("src", "href") and not (value or "").startswith("#")
    ]
    policy = next(
        value or "" for name, value in page.attributes if name == "content" and "default-src" in (value or "")
    )
    assert "unsafe" not in policy
    assert "http" not in policy


def test_the_same_report_gives_the_same_page():
    assert make_report().to_html() == REPORT.to_html()


# --------------------------------------------------------------------------------------------- the browser


@needs_browser
def test_every_view_is_drawn_in_silence(page: Chromium):
    assert texts(page, "header h1") == ["base and chat: what differs"]
    assert "212" in texts(page, ".key dd")
    assert len(texts(page, "svg")) == 4
    go(page, "#latents", ".latents tbody tr[data-latent]")
    go(page, "#latent=5", ".context")
    go(page, "#kl", ".documents tbody tr")
    go(page, "#kl=1", ".document .token")
    go(page, "#latent=400", ".card")
    page.wait("document.querySelector('h2').textContent === 'There is no such latent'")


@needs_browser
def test_a_request_or_markup_from_elsewhere_is_refused_and_noticed(chrome: Chromium, path: Path):
    chrome.open(path)
    chrome.problems.clear()
    chrome.run("void (new Image().src = 'http://127.0.0.1:9/x.png')")
    chrome.until(lambda: chrome.problems, "the request is noticed")
    assert "violates the following Content Security Policy directive" in chrome.problems.pop()
    assert chrome.requests[-1] == "http://127.0.0.1:9/x.png"
    attempt = "(() => { try { document.body.innerHTML = '<b>'; return 'done' } catch { return 'refused' } })()"
    assert chrome.run(attempt) == "refused"
    chrome.until(lambda: chrome.problems or chrome.run("0"), "the markup is noticed")
    assert "TrustedHTML" in chrome.problems[0]


@needs_browser
def test_the_classes_are_counted_and_lead_to_their_latents(page: Chromium):
    classes = list(REPORT.table.column("class").values)
    rows = page.run(
        "[...document.querySelectorAll('a[href^=\"#latents=\"]')].map(a => "
        "[a.textContent, a.closest('tr').querySelector('td').textContent])"
    )
    assert dict(rows) == {
        name: str(classes.count(name)) for name in ("base-only", "shared", "chat-only", "other", "dead")
    }
    page.point_at("a[href*='chat-only']", click=True)
    page.wait("document.querySelector('.count') !== null")
    assert texts(page, ".count") == [f"{classes.count('chat-only')} of 400 latents"]
    assert page.run("document.getElementById('filter').value") == 'class="chat-only"'


@needs_browser
def test_a_table_of_findings_stands_on_the_first_page_with_dashes_for_what_is_not_defined(page: Chromium):
    assert texts(page, ".findings thead th") == ["what is patched", "put in", "n", HOSTILE[1]]
    assert texts(page, ".findings tbody tr:first-child > *") == ["full difference", "100.0%", "3", "0.25"]
    assert texts(page, ".findings tbody tr:last-child > *") == [HOSTILE[0], "–", "–", "true"]


@needs_browser
def test_a_heading_sorts_and_undefined_numbers_come_last(page: Chromium):
    go(page, "#latents", "[data-sort=nu_error]")
    assert first_rows(page, 3) == [0, 1, 2]
    nu = values(REPORT.table, "nu_error")
    for direction, order in (("descending", nu.nan_to_num(-99).argsort(descending=True)), ("ascending", nu.argsort())):
        page.point_at("[data-sort=nu_error]", click=True)
        assert page.run("document.querySelector('[data-sort=nu_error]').closest('th').ariaSort") == direction
        assert first_rows(page, 10) == order[:10].tolist()
        page.run("document.querySelector('.latents').focus()")
        page.press("End")
        page.wait("document.querySelector('#active-row')?.dataset.latent === '2'")
    page.run("document.querySelector('[data-sort=relative_decoder_norm]').focus()")
    page.press("Enter")
    largest = int(values(REPORT.table, "relative_decoder_norm").argmax())
    assert first_rows(page, 1) == [largest]
    assert page.run("document.activeElement.dataset.sort") == "relative_decoder_norm"


@needs_browser
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("class:only nu_error<0.9", lambda j, c, nu, f, t: ("only" in c) and nu < 0.9),
        ("CLASS=Chat-Only", lambda j, c, nu, f, t: c == "chat-only"),
        ("class!=dead relative>=0.5", lambda j, c, nu, f, t: c != "dead" and t >= 0.5),
        ("freq>1e-2", lambda j, c, nu, f, t: f > 1e-2),
        ("-shared -dead", lambda j, c, nu, f, t: c not in ("shared", "dead")),
        ("nu_error=none", lambda j, c, nu, f, t: math.isnan(nu)),
        ("complete=yes", lambda j, c, nu, f, t: nu > 0.9),
        ("latent<=9 -nu_error<0", lambda j, c, nu, f, t: j <= 9 and not nu < 0),
        ("latent<9 latent>1 latent!=5", lambda j, c, nu, f, t: 1 < j < 9 and j != 5),
        ("latent>=398", lambda j, c, nu, f, t: j >= 398),
        ("17", lambda j, c, nu, f, t: j == 17),
        ('"chat-on"', lambda j, c, nu, f, t: c == "chat-only"),
    ],
)
def test_a_filter_finds_the_latents_it_names(page: Chromium, text: str, expected):
    table = REPORT.table
    rows = zip(
        table.column("class").values,
        values(table, "nu_error").tolist(),
        values(table, "frequency_chat").tolist(),
        values(table, "relative_decoder_norm").tolist(),
        strict=True,
    )
    found = [j for j, row in enumerate(rows) if expected(j, *row)]
    go(page, "#latents", ".latents tbody tr[data-latent]")
    filter_by(page, text)
    assert texts(page, ".count") == [f"{len(found)} of 400 latents"]
    assert 0 < len(found) < 400
    assert first_rows(page, 10) == found[:10]
    assert page.run("decodeURIComponent(location.hash)") == f"#latents={text}"


@needs_browser
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nuerror<1", "There is no column “nuerror”"),
        ("nu<1", "“nu” is the beginning of 2 columns: nu_error, nu_reconstruction"),
        ("nu_error<abc", "needs a number"),
        ("class<3", "“class” is text"),
    ],
)
def test_a_filter_that_cannot_be_read_says_why_and_changes_nothing(page: Chromium, text: str, message: str):
    go(page, "#latents", ".latents tbody tr[data-latent]")
    filter_by(page, "class=shared")
    before = texts(page, ".count")
    filter_by(page, text)
    assert message in texts(page, "#filter-error")[0]
    assert page.run("document.getElementById('filter').ariaInvalid") == "true"
    assert texts(page, ".count") == before
    filter_by(page, "class=shared")
    assert page.run("document.getElementById('filter-error').hidden")


@needs_browser
def test_the_keyboard_alone_leads_through_the_page(page: Chromium):
    page.press("/")
    page.wait("document.activeElement.id === 'filter'")
    page.type("class=shared")
    page.press("Enter")
    shared = [j for j, name in enumerate(REPORT.table.column("class").values) if name == "shared"]
    page.press("ArrowDown")
    page.press("ArrowDown")
    assert int(page.run("document.querySelector('#active-row').dataset.latent")) == shared[2]
    page.press("Enter")
    page.wait(f"document.querySelector('h2').textContent === 'Latent {shared[2]}'")
    page.press("ArrowRight")
    page.wait(f"document.querySelector('h2').textContent === 'Latent {shared[3]}'")
    page.press("ArrowLeft")
    page.wait(f"document.querySelector('h2').textContent === 'Latent {shared[2]}'")
    page.press("Escape")
    page.wait("document.activeElement.classList.contains('latents')")
    assert page.run("document.getElementById('filter').value") == "class=shared"
    assert int(page.run("document.querySelector('#active-row').dataset.latent")) == shared[2]
    page.press("?")
    assert page.run("document.getElementById('help').open")
    page.press("Escape")
    assert not page.run("document.getElementById('help').open")


@needs_browser
def test_columns_are_shown_and_hidden(page: Chromium):
    go(page, "#latents", ".chooser")
    assert "quantile_3" not in page.run("[...document.querySelectorAll('th [data-sort]')].map(b => b.dataset.sort)")
    page.point_at(".chooser summary", click=True)
    page.point_at("[data-column=quantile_3]", click=True)
    page.point_at("[data-column=nu_error]", click=True)
    shown = page.run("[...document.querySelectorAll('th [data-sort]')].map(b => b.dataset.sort)")
    assert "quantile_3" in shown
    assert "nu_error" not in shown
    page.press("Escape")
    assert not page.run("document.querySelector('.chooser').open")


@needs_browser
def test_the_page_of_a_latent_shows_its_numbers_contexts_and_lenses(page: Chromium):
    go(page, "#latent=7", ".context")
    numbers = dict(
        page.run(
            "[...document.querySelectorAll('.numbers > div')].map(row => "
            "[row.querySelector('dt').textContent, row.querySelector('.value').textContent])"
        )
    )
    assert set(numbers) == {column.title for column in REPORT.table.columns}
    assert float(numbers["cosine"]) == pytest.approx(float(values(REPORT.table, "decoder_cosine")[7]), rel=1e-3)
    assert int(numbers["firings"].replace(",", "")) == int(values(REPORT.table, "n_firings")[7])
    contexts, tokens = REPORT.evidence.contexts, REPORT.evidence.tokens
    assert contexts is not None
    rows = (contexts.latents == 7).nonzero().flatten().tolist()
    by_dataset = sorted(rows, key=lambda row: contexts.datasets[row] != contexts.datasets[rows[0]])
    assert texts(page, ".context > .number") == [f"{float(contexts.activations[row].max()):.2f}" for row in by_dataset]
    # In running text only a token of nothing but spaces is drawn.
    spelt = {token: "␣" if token == " " else _SPELT.get(token, token) for token in tokens.values()}
    assert page.run(
        "[...document.querySelectorAll('.context')].map(context => "
        "[...context.querySelectorAll('.token')].map(token => token.textContent))"
    ) == [[spelt[tokens[i]] for i in contexts.token_ids[row].tolist() if i >= 0] for row in by_dataset]
    strengths = "[...document.querySelectorAll('.context .token')].map(t => +t.style.getPropertyValue('--strength'))"
    shown = contexts.activations[by_dataset][contexts.token_ids[by_dataset] >= 0]
    assert page.run(strengths) == pytest.approx((shown / contexts.activations[rows].max()).tolist(), abs=1 / 127)
    for label in LABELS:
        lens = REPORT.evidence.logit_lens[label]
        assert texts(page, f'[aria-label="{label}, raised"] code') == [
            alone(tokens[i]) for i in lens.top_ids[7].tolist()
        ]
        assert texts(page, f'[aria-label="{label}, lowered"] code') == [
            alone(tokens[i]) for i in lens.bottom_ids[7].tolist()
        ]
    assert page.run("document.title") == "base and chat: what differs"


@needs_browser
def test_a_latent_leads_to_the_documents_whose_kl_it_carries(page: Chromium):
    go(page, "#latent=3", "a[href='#kl=1&latent=3']")
    row = page.run("document.querySelector(\"a[href='#kl=1&latent=3']\").closest('tr').innerText").split("\t")
    document = REPORT.evidence.kl_documents[1]
    carried = document.attributions[document.latents.tolist().index(3)].sum()
    assert float(row[2]) == pytest.approx(float(carried), rel=1e-3)
    assert float(row[3]) == pytest.approx(float(document.kl.nansum()), rel=1e-3)
    page.point_at("a[href='#kl=1&latent=3']", click=True)
    page.wait("document.querySelector('#colour') !== null")
    assert page.run("document.querySelector('#colour').selectedOptions[0].textContent").startswith("latent 3,")


@needs_browser
def test_documents_are_sorted_by_kl(page: Chromium):
    go(page, "#kl", ".documents tbody tr")
    documents = REPORT.evidence.kl_documents
    for order, measure in (
        ("mean", Tensor.nanmean),
        ("total", Tensor.nansum),
        ("max", lambda kl: kl.nan_to_num(-1).max()),
    ):
        page.run(f"document.querySelector('[data-sort={order}]').click()")
        page.wait(f"document.querySelector('[aria-sort=descending] [data-sort={order}]') !== null")
        by_kl = sorted(range(len(documents)), key=lambda i: -float(measure(documents[i].kl)))
        assert texts(page, ".documents tbody a") == [f"document {i}" for i in by_kl]


@needs_browser
def test_a_token_under_the_pointer_or_in_focus_shows_what_both_models_expect(page: Chromium):
    go(page, "#kl=2", ".document .token")
    document, tokens = REPORT.evidence.kl_documents[2], REPORT.evidence.tokens

    def check(place: int) -> None:
        page.wait(f"document.querySelector('.details p').textContent.startsWith('Token {place},')")
        kl = float(re.findall(r"KL ([\d.e-]+) nats", texts(page, ".details p")[0])[0])
        assert kl == pytest.approx(float(document.kl[place]), rel=1e-3)
        expected = [alone(tokens[token]) for token in document.top_ids[:, place].flatten().tolist()]
        assert texts(page, ".next code") == expected
        shares = [float(text.removesuffix(" %")) / 100 for text in texts(page, ".next .number")]
        assert shares == pytest.approx(document.top_probabilities[:, place].flatten().tolist(), abs=6e-4)
        here = document.attributions[:, place]
        carrying = here.abs().argsort(descending=True)[: min(8, int((here != 0).sum()))]
        assert texts(page, ".carried a") == [f"latent {int(document.latents[row])}" for row in carrying]

    page.point_at("[data-token='20']")
    check(20)
    page.run("document.querySelector('[data-token=\"30\"]').focus()")
    check(30)
    page.press("ArrowRight")
    check(31)
    assert page.run("document.querySelectorAll('.document [tabindex=\"0\"]').length") == 1


@needs_browser
def test_tokens_are_coloured_by_kl_or_by_the_attribution_of_a_latent(page: Chromium):
    go(page, "#kl=2", ".document .token")
    document = REPORT.evidence.kl_documents[2]
    strengths = "[...document.querySelectorAll('.document .token')].map(t => +t.style.getPropertyValue('--strength'))"
    kl = document.kl.nan_to_num(0)
    assert page.run(strengths) == pytest.approx((kl / kl.max()).tolist(), abs=1e-5)
    assert page.run("document.querySelectorAll('.uncounted').length") == 1
    page.run("(s => { s.selectedIndex = 1; s.dispatchEvent(new Event('change')) })(document.querySelector('#colour'))")
    row = int(document.attributions.sum(dim=1).abs().argmax())
    attribution = document.attributions[row]
    assert page.run(strengths) == pytest.approx((attribution.abs() / attribution.abs().max()).tolist(), abs=1 / 127)
    negative = page.run("[...document.querySelectorAll('.document .token')].map(t => t.classList.contains('negative'))")
    assert negative == (attribution < 0).tolist()


@needs_browser
def test_hostile_strings_are_shown_as_text(chrome: Chromium, tmp_path: Path):
    table = LatentTable(REPORT.table.columns, (HOSTILE[0], HOSTILE[1]), {HOSTILE[0]: HOSTILE[1]})
    evidence = type(REPORT.evidence)(REPORT.evidence.tokens, REPORT.evidence.contexts, {}, REPORT.evidence.kl_documents)
    paths = DiffReport(table, REPORT.overview, evidence, "".join(HOSTILE), {HOSTILE[1]: HOSTILE[0]}).save(tmp_path)
    chrome.problems.clear()
    for address in ("", "#latents", "#latent=3", "#kl", "#kl=0"):
        chrome.open(paths["report"], address)
        assert chrome.run("document.title") != "PWNED"
        assert chrome.run("document.querySelectorAll('main script, main img, header script, header img').length") == 0
        assert HOSTILE[0] in texts(chrome, "header h1")[0]
    assert "\\u202egnp\\ud800\\x00\\x1b⏎⇥" in texts(chrome, "header h1")[0]
    assert chrome.problems == []


@needs_browser
def test_a_click_on_the_scatter_opens_the_nearest_latent(page: Chromium):
    page.run("document.querySelector('.scatter').scrollIntoView()")
    nu = values(REPORT.table, "nu_error")
    # The tip names a latent and its two numbers; the middle of the cloud has latents everywhere.
    page.point_at(".scatter")
    page.wait("!document.querySelector('.tip').hidden")
    latent = int(re.findall(r"latent (\d+)", texts(page, ".tip")[0])[0])
    assert float(texts(page, ".tip")[0].rpartition("/")[2]) == pytest.approx(float(nu[latent]), rel=1e-3)
    page.point_at(".scatter", click=True)
    page.wait(f"document.querySelector('h2').textContent === 'Latent {latent}'")


def _contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Contrast ratio of WCAG 2.2."""

    def luminance(colour: tuple[float, ...]) -> float:
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


@needs_browser
def test_colours_follow_the_reader_and_can_be_read_in_both_themes(page: Chromium):
    def variable(name: str) -> tuple[float, ...]:
        text = page.run(f"getComputedStyle(document.documentElement).getPropertyValue('{name}').trim()")
        if text.startswith("#"):
            return tuple(int(text[i : i + 2], 16) for i in (1, 3, 5))
        return tuple(float(part) for part in text.split(","))

    for theme, button in (("light", "Dark"), ("dark", "Light")):
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        page.wait(f"document.documentElement.dataset.theme === '{theme}'")
        assert texts(page, "#theme") == [button]
        panel, text = variable("--panel"), variable("--text")
        assert (sum(panel) > 600) == (theme == "light")
        for name in ("--text", "--muted", "--link", "--error"):
            assert min(_contrast(variable(name), variable(ground)) for ground in ("--panel", "--page")) >= 4.5, name
        assert _contrast(text, variable("--active")) >= 4.5
        for name in ("--heat", "--cold", "--kl"):
            ground = tuple(0.9 * a + 0.1 * b for a, b in zip(variable(name), panel, strict=True))
            assert _contrast(text, ground) >= 4.5, (theme, name)
        for tone in ("s0", "s1", "s2", "s3", "s4", "shared", "other", "dead"):
            assert _contrast(variable(f"--tone-{tone}"), panel) >= 3, (theme, tone)
    page.point_at("#theme", click=True)
    assert page.run("document.documentElement.dataset.theme") == "light"
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])


@needs_browser
def test_nothing_is_wider_than_a_narrow_window(page: Chromium):
    page.resize(400, 800)
    for address, until in (
        ("#overview", ".figures"),
        ("#latents", ".list"),
        ("#latent=5", ".context"),
        ("#kl", ".documents"),
        ("#kl=1", ".document"),
    ):
        go(page, address, until)
        assert page.run("document.documentElement.scrollWidth <= innerWidth"), address


@needs_browser
def test_sixteen_thousand_latents_stay_small_and_fast(chrome: Chromium, tmp_path: Path):
    report = make_report(d_sae=16_384, n_with_contexts=500, n_documents=20, n_tokens=300)
    path = report.save(tmp_path)["report"]
    size = path.stat().st_size / 1e6
    chrome.problems.clear()
    load_s = chrome.open(path, "#latents")
    print(f"\n16,384 latents, 30 columns, contexts of 500: {size:.1f} MB, drawn after {load_s:.2f} s")
    assert size < 5
    assert load_s < 10
    n_rows = "document.querySelectorAll('.latents tbody tr').length"
    assert chrome.run(n_rows) < 100
    chrome.press("End")
    chrome.wait("document.querySelector('#active-row')?.dataset.latent === '16383'")
    assert chrome.run(n_rows) < 100
    took_ms = chrome.run(
        "(() => { const t = performance.now(); document.querySelector('[data-sort=nu_error]').click(); "
        "return performance.now() - t })()"
    )
    assert took_ms < 2000
    assert first_rows(chrome, 1) == [int(values(report.table, "nu_error").nan_to_num(-99).argmax())]
    assert chrome.problems == []
