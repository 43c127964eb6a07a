"""The HTML report: self-contained, and unmoved by hostile labels and tokens."""

import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sae_lens_crosscoder.diffing import PairGeometry, ReportTable, decoder_figure, write_report_html
from sae_lens_crosscoder.errors import SaveError, ShapeError
from sae_lens_crosscoder.files import write_file

MakeGeometry = Callable[..., PairGeometry]

HOSTILE = "</td></script><script>document.title='PWNED'</script><img src=x onerror=alert(1)>\"'&"


class Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.scripts.append(data)
        elif self.tags and self.tags[-1] in ("td", "th"):
            self.cells[-1] += data.rstrip("\n")
        self.text += data


def test_the_page_loads_nothing_from_anywhere(geometry: PairGeometry, tmp_path: Path):
    page = Page(write_report_html(decoder_figure(geometry), tmp_path / "r.html", "Report"))
    assert not {"link", "iframe", "img", "object", "embed", "base"} & set(page.tags)
    assert not {"src", "href"} & {name for name, _ in page.attributes}
    assert any((value or "").startswith("default-src 'none'") for _, value in page.attributes)


def test_plotly_is_in_the_page_once_however_many_figures(geometry: PairGeometry, tmp_path: Path):
    figure = decoder_figure(geometry)
    one = write_report_html(figure, tmp_path / "1.html", "Report").stat().st_size
    two = write_report_html([figure, figure], tmp_path / "2.html", "Report").stat().st_size
    none = write_report_html([], tmp_path / "0.html", "Report").stat().st_size
    assert one > 1_000_000
    assert two - one < 100_000
    assert none < 10_000


def test_hostile_strings_stay_text_wherever_they_stand(tmp_path: Path, make_geometry: MakeGeometry):
    table = ReportTable(HOSTILE, [HOSTILE], [[HOSTILE]], note=HOSTILE)
    figure = decoder_figure(make_geometry((HOSTILE + "1", HOSTILE + "2")))
    clean = Page(
        write_report_html(
            decoder_figure(make_geometry()), tmp_path / "clean.html", "t", [ReportTable("t", ["c"], [["x"]], note="n")]
        )
    )
    page = Page(write_report_html(figure, tmp_path / "r.html", HOSTILE, [table]))
    assert page.tags == clean.tags
    assert page.cells == [HOSTILE, HOSTILE]
    assert "onerror" not in {name for name, _ in page.attributes}


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        (" the", " the"),
        ("a\nb\t", "a⏎b\\t"),
        ("\u202egnp", "\\u202egnp"),
        ("\x00\ud800", "\\x00\\ud800"),
        ("é日🙂", "é日🙂"),
        (12345, "12,345"),
        (0.123456, "0.1235"),
        (math.nan, "–"),
        (None, "–"),
        (True, "yes"),
    ],
)
def test_cells_are_shown_readably(cell: str | int | float | bool | None, shown: str, tmp_path: Path):
    page = Page(write_report_html([], tmp_path / "r.html", "t", [ReportTable("t", ["c"], [[cell]])]))
    assert page.cells == ["c", shown]


def test_columns_of_numbers_are_set_right(tmp_path: Path):
    table = ReportTable("t", ["n", "s"], [[1, "a"], [None, "b"]])
    text = write_report_html([], tmp_path / "r.html", "t", [table]).read_text(encoding="utf-8")
    assert re.findall(r'<td( class="number")?>', text) == [' class="number"', "", ' class="number"', ""]


def test_a_table_without_rows_is_its_heading_and_note(tmp_path: Path):
    page = write_report_html([], tmp_path / "report.html", "t", [ReportTable("base-only", ["latent"], [], "None.")])
    text = page.read_text()
    assert '<h2>base-only</h2><p class="note">None.</p></section>' in text
    assert "<th>latent</th>" not in text


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ShapeError, match="Row 1 of the table 'latents' has 3 cells, and there are 2 columns"):
        ReportTable("latents", ["a", "b"], [[1, 2], [1, 2, 3]])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "r.html"
    path.write_text("old")

    def fill_the_disk(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(SaveError, match=r"r\.html could not be written: No space left on device"):
        write_file(path, b"new content")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_parent_that_is_a_file_is_an_error_of_ours(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SaveError, match="could not be written"):
        write_report_html([], tmp_path / "file" / "r.html", "t")
