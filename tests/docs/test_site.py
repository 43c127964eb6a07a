"""The documentation: it builds without a warning, shows the whole public API, and opens with no network."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from chromium import Chromium

import sae_lens_crosscoder

ROOT = Path(__file__).parents[2]
PACKAGES = ("activations", "training", "diffing", "causal", "model_diff", "hub")

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")),
    reason="mkdocs is not installed: pip install 'sae-lens-crosscoder[docs]'",
)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a broken link or a name that is not found would end the build."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "ignore"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    return out


def _names_on(page: Path, package: str) -> set[str]:
    """Public names of a package that have an entry of their own on a page; some are those of their module too."""
    return set(re.findall(rf'id="{re.escape(package)}\.(\w+)(?:\.\1)?"', page.read_text()))


def test_the_api_page_shows_the_public_names_and_no_others(site: Path) -> None:
    assert _names_on(site / "api" / "index.html", "sae_lens_crosscoder") == set(sae_lens_crosscoder.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_page_of_a_package_shows_all_its_public_names(site: Path, package: str) -> None:
    name = f"sae_lens_crosscoder.{package}"
    module = importlib.import_module(name)
    assert _names_on(site / "api" / f"{package}.html", name) >= set(module.__all__)


def test_no_page_asks_the_network_for_anything(site: Path) -> None:
    loaded = re.compile(
        r"<(?:script|img|link|iframe)\b[^>]*(?:src|href)=[\"']?(?:https?:)?//|unpkg|jsdelivr|googleapis"
    )
    found = [page.name for page in site.rglob("*.html") if loaded.search(page.read_text())]
    assert found == []


def test_every_page_of_the_navigation_is_reached_from_the_start(site: Path) -> None:
    start = (site / "index.html").read_text()
    pages = {page.relative_to(site).as_posix() for page in site.rglob("*.html")} - {"404.html", "index.html"}
    assert {page for page in pages if f'href="{page}"' not in start} == set()


def test_pictures_are_small_enough_for_the_repository() -> None:
    pictures = list((ROOT / "docs" / "pictures").iterdir())
    assert len(pictures) >= 8
    assert {picture.name: size for picture in pictures if (size := picture.stat().st_size) >= 200_000} == {}


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Where the site is served on this machine."""

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def _requests_elsewhere(browser: Chromium, own: str) -> list[str]:
    return [url for url in browser.requests if not url.startswith((own, "about:", "data:", "blob:"))]


def test_a_page_opens_from_a_folder_with_its_pictures_and_nothing_from_elsewhere(site: Path, browser: Chromium) -> None:
    browser.call("Page.navigate", url=(site / "concepts" / "latent-scaling.html").as_uri())
    browser.wait("document.readyState === 'complete' && document.querySelectorAll('article img').length === 2")
    browser.wait("[...document.querySelectorAll('article img')].every(i => i.complete && i.naturalWidth > 100)")
    assert browser.run("document.querySelector('h1').innerText").startswith("Latent scaling")
    assert browser.run("getComputedStyle(document.querySelector('.formula')).borderLeftStyle") == "solid"
    assert _requests_elsewhere(browser, "file:") == []
    assert browser.problems == []


@pytest.mark.parametrize("page", ["reliability", "security", "scaling", "migration", "howto/train"])
def test_a_table_is_read_without_scrolling_sideways(site: Path, browser: Chromium, page: str) -> None:
    browser.call("Page.navigate", url=(site / f"{page}.html").as_uri())
    browser.wait("document.readyState === 'complete' && document.querySelector('.md-typeset__scrollwrap') !== null")
    tables = "[...document.querySelectorAll('.md-typeset__scrollwrap')]"
    assert browser.run(f"{tables}.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText)") == []
    assert (
        browser.run(f"Math.max(...{tables}.flatMap(e => [...e.querySelectorAll('tr')]).map(r => r.offsetHeight))") < 500
    )


def test_the_search_of_the_served_site_finds_a_page(browser: Chromium, address: str) -> None:
    browser.call("Page.navigate", url=address)
    browser.wait("document.readyState === 'complete' && document.querySelector('.md-search__input') !== null")
    browser.run("document.querySelector('.md-search__input').focus()")
    browser.type("shrinkage")
    browser.wait(
        "[...document.querySelectorAll('.md-search-result__link')].some(a => a.href.includes('latent-scaling'))"
    )
    assert _requests_elsewhere(browser, address) == []
