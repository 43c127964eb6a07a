from __future__ import annotations

from helpers import tiny_tokenizer
from other_tokenizers import metaspace

from sae_lens_crosscoder.dashboards.token_strings import PADDING, TokenStrings


def test_tokens_are_decoded_with_their_leading_spaces() -> None:
    bytes_tokenizer = tiny_tokenizer()
    spelt = bytes_tokenizer.convert_tokens_to_ids("Ġthe")
    assert TokenStrings(bytes_tokenizer)[spelt] == " the"
    pieces = metaspace()
    spelt = pieces.convert_tokens_to_ids("▁the")
    assert TokenStrings(pieces)[spelt] == " the"


def test_a_token_without_a_string_is_its_number() -> None:
    assert TokenStrings(None)[17] == "[17]"
    assert TokenStrings(None)[PADDING] == ""


def test_line_breaks_are_visible_and_entities_stay_what_they_are() -> None:
    strings = TokenStrings(None)
    strings |= {0: "\n", 1: "&lt;", 2: "&", 3: " a\tb"}
    assert [strings.shown(i).replace("\u2060", "") for i in range(4)] == ["⏎", "&lt;", "&", " a⇥b"]
    assert "&lt;" not in strings.shown(1)
