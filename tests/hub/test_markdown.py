from __future__ import annotations

from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_crosscoder.hub.markdown import plain, table


@pytest.mark.parametrize("name", ["google/gemma-2-2b-it", "blocks.13.hook_resid_post", "share (of 2)", "0.5 - 1"])
def test_ordinary_names_stay_as_they_are(name: str) -> None:
    assert plain(name) == name


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("<script>alert(1)</script>", "&#60;script&#62;alert(1)&#60;/script&#62;"),
        ("[click](javascript:x)", "&#91;click&#93;(javascript:x)"),
        ("a | b", "a &#124; b"),
        ("a\n## b", "a&#92;n&#35;&#35; b"),
        ("`code`", "&#96;code&#96;"),
        ("https://evil.example", "https&#58;//evil.example"),
        ("www.evil.example", "www&#46;evil.example"),
        ("_loud_", "&#95;loud&#95;"),
        ("a@b.example", "a&#64;b.example"),
        ("\u202egpj", "&#92;u202egpj"),
        ("--- &amp;", "--- &#38;amp;"),
    ],
)
def test_markup_in_a_name_is_shown_and_does_nothing(hostile: str, shown: str) -> None:
    assert plain(hostile) == shown


@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=["Cc", "Cf"])))
def test_a_reader_sees_the_text_itself_and_a_renderer_no_markup(text: str) -> None:
    escaped = plain(text)
    assert unescape(escaped) == text
    assert not set("<>[]`|*~$\\!@{}") & set(escaped)


def test_a_table_puts_numbers_right_and_leaves_cells_empty() -> None:
    assert table(["a", "n"], [("x|y", 12345), ("z", 0.123456), ("w", None)]).splitlines() == [
        "| a | n |",
        "| --- | ---: |",
        "| x&#124;y | 12,345 |",
        "| z | 0.1235 |",
        "| w |  |",
    ]
