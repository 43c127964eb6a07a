from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from helpers import SENTENCES, fresh_tokenizer, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from other_tokenizers import byte_bpe, metaspace, other_bpe, whole_text, word_pieces, wrapped
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from sae_lens_crosscoder.alignment import TextAligner, kept_shares, token_ends, unpack
from sae_lens_crosscoder.errors import ShapeError, SourceError

TEXTS = st.text(st.sampled_from("the owl, OF.\n é ï ß …🦊👩‍🔬漢字\u0301"), max_size=40)


@lru_cache
def aligner(*tokenizers: Any) -> TextAligner:
    return TextAligner([(f"source{i}", tokenizer) for i, tokenizer in enumerate(tokenizers)])


def aligned(text: str, *tokenizers: Any) -> tuple[list[int], tuple[list[int], ...]]:
    """Where tokens end together, and which tokens of each tokenizer do."""
    (result,) = aligner(*tokenizers).align([text])
    return result.ends, result.positions


# --------------------------------------------------------------------------------------- token ends


@pytest.mark.parametrize(
    ("text", "offsets", "expected"),
    [
        pytest.param("the owl", [(0, 3), (3, 7)], {3: 0, 7: 1}, id="a space that belongs to the word after it"),
        pytest.param("the owl ", [(0, 3), (4, 7)], {3: 0, 7: 1}, id="white space that belongs to no token"),
        pytest.param("aé", [(0, 1), (1, 2), (1, 2)], {1: 0, 2: 2}, id="two bytes of one character"),
        pytest.param("éê", [(0, 1), (0, 2), (1, 2)], {2: 2}, id="a token of bytes of two characters"),
        pytest.param("the", [(0, 1), (0, 3)], {3: 1}, id="a prefix space that claims the first character"),
        pytest.param("ab", [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)], {1: 1, 2: 3}, id="tokens of no text"),
        pytest.param("e\u0301 x", [(0, 1), (0, 1), (2, 4)], {4: 2}, id="an accent merged into the letter before it"),
        pytest.param("ab!", [(0, 1), (1, 2)], {1: 0}, id="a last character that was dropped"),
        pytest.param("", [], {}, id="no text"),
    ],
)
def test_a_token_ends_where_exactly_the_text_so_far_was_read(
    text: str, offsets: list[tuple[int, int]], expected: dict[int, int]
) -> None:
    assert token_ends(text, offsets) == expected


# ------------------------------------------------------------------- positions, worked out by hand


def test_tokens_of_two_byte_pair_encodings_end_together_where_worked_out_by_hand() -> None:
    # the| |h|en and t|he| he|n
    one, two = byte_bpe("t h", "th e", "e n"), byte_bpe("h e", "Ġ he")
    assert aligned("the hen", one, two) == ([3, 7], ([0, 3], [1, 3]))


def test_of_the_bytes_of_one_character_only_the_last_counts() -> None:
    # é is two bytes and the fox four: the second tokenizer has é as one token
    assert aligned("é🦊", byte_bpe(), byte_bpe("Ã ©")) == ([1, 2], ([1, 5], [0, 4]))


def test_a_token_across_two_characters_leaves_the_first_without_an_end() -> None:
    # The second tokenizer merges the last byte of é with the first of the fox: Ã|©ð|Ł|¦|Ĭ
    assert aligned("é🦊", byte_bpe(), byte_bpe("© ð", use_regex=False)) == ([2], ([5], [4]))


def test_words_end_together_whether_their_space_stands_before_them_or_belongs_to_no_token() -> None:
    # GPT-2's way the|Ġhen, SentencePiece's the|▁hen, BERT's the|hen
    gpt2 = byte_bpe("t h", "th e", "e n", "Ġ h", "Ġh en")
    sentencepiece = Tokenizer(models.BPE(vocab={"<s>": 0, **_all_of("the▁n")}, merges=_merges("t h", "th e")))
    sentencepiece.pre_tokenizer = pre_tokenizers.Metaspace()
    bert = Tokenizer(models.WordLevel({"<s>": 0, "the": 1, "hen": 2, "[UNK]": 3}, unk_token="[UNK]"))
    bert.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    bert.normalizer = normalizers.BertNormalizer(lowercase=True)
    # SentencePiece: ▁|the|▁|h|e|n, of which the first claims the first character and is none of it
    ends, positions = aligned("the HEN the hen", gpt2, wrapped(bert))
    assert ends == [3, 7, 11, 15]
    assert positions[1] == [0, 1, 2, 3]
    assert aligned("the hen", gpt2, wrapped(sentencepiece), wrapped(bert)) == ([3, 7], ([0, 1], [1, 5], [0, 1]))


def _all_of(characters: str) -> dict[str, int]:
    return {token: i for i, token in enumerate([*characters, "th", "the"], start=1)}


def _merges(*pairs: str) -> list[tuple[str, str]]:
    return [(left, right) for left, right in (pair.split(" ") for pair in pairs)]


def test_offsets_are_those_of_the_original_text_when_a_normalizer_changes_its_length() -> None:
    composed = byte_bpe("Ã ©")
    composed.backend_tokenizer.normalizer = normalizers.NFC()
    # e and its accent, two characters, are one to the second tokenizer; what it read after them is unclear until "a".
    assert aligned("e\u0301a", byte_bpe(), composed) == ([3], ([3], [1]))


def test_special_tokens_and_trimmed_offsets_of_a_post_processor_play_no_part() -> None:
    trimmed = fresh_tokenizer()
    trimmed.backend_tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)]),
        ]
    )
    plain = byte_bpe()
    text = "the owl  flies"
    ends, positions = aligned(text, trimmed, plain)
    assert (ends, positions) == aligned(text, tiny_tokenizer(), plain)
    assert positions[1] == [end - 1 for end in ends]
    assert aligner(trimmed).align([text])[0].ids == (tiny_tokenizer()(text, add_special_tokens=False)["input_ids"],)


def test_truncation_and_padding_of_a_tokenizer_play_no_part() -> None:
    short = fresh_tokenizer()
    short.backend_tokenizer.enable_truncation(2)
    short.backend_tokenizer.enable_padding(length=20)
    (text,) = aligner(short).align([SENTENCES[0]])
    assert text.ids == (tiny_tokenizer()(SENTENCES[0])["input_ids"],)
    assert short.backend_tokenizer.truncation is not None


# ---------------------------------------------------------------------------------- properties


def prefixes(tokenizer: Any, ids: list[int], text: str) -> dict[int, int]:
    """Token by length of the text that it ends, for those up to which the tokens decode to exactly that text."""
    decoded = [tokenizer.decode(ids[: i + 1], clean_up_tokenization_spaces=False) for i in range(len(ids))]
    return {len(prefix): i for i, prefix in enumerate(decoded) if prefix and text.startswith(prefix)}


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_places_are_exactly_those_where_the_tokens_so_far_decode_to_the_same_text(text: str) -> None:
    tokenizers = [tiny_tokenizer(), other_bpe(), metaspace()]
    (result,) = aligner(*tokenizers).align([text])
    ends = [prefixes(t, ids, text) for t, ids in zip(tokenizers, result.ids, strict=True)]
    assert result.ends == sorted(set(ends[0]) & set(ends[1]) & set(ends[2]))
    for own, positions in zip(ends, result.positions, strict=True):
        assert positions == [own[end] for end in result.ends]


@settings(deadline=None)
@given(text=TEXTS)
def test_places_do_not_depend_on_the_order_of_the_tokenizers(text: str) -> None:
    one, two = aligned(text, word_pieces(), other_bpe()), aligned(text, other_bpe(), word_pieces())
    assert one == (two[0], two[1][::-1])


def test_equal_tokenizers_are_one_and_keep_every_token() -> None:
    same = aligner(tiny_tokenizer(), fresh_tokenizer(), other_bpe(), tiny_tokenizer())
    assert same.of_source == [0, 0, 1, 0]
    assert len(same.tokenizers) == 2
    sequences = unpack(aligner(tiny_tokenizer(), fresh_tokenizer()).rows(SENTENCES), 1)
    assert kept_shares(sequences).tolist() == [1.0]


def test_tokenizers_with_different_special_tokens_are_two() -> None:
    other = fresh_tokenizer()
    other.pad_token = other.convert_ids_to_tokens(7)
    assert len(aligner(tiny_tokenizer(), other).tokenizers) == 2


# ---------------------------------------------------------------------------------- packed rows


def test_packed_rows_hold_bos_ids_and_places_of_every_tokenizer() -> None:
    one, two = byte_bpe("t h", "th e", "e n"), byte_bpe("h e", "Ġ he")
    sequences = unpack(aligner(one, two).rows(["the hen", "then"]), 2)
    for tokenizer, own, places in zip((one, two), sequences, ([[1, 4], [1, 2]], [[2, 4], [2, 3]]), strict=True):
        texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the hen", "then")]
        assert own.ids.shape == (2, 5)
        for row, ids in enumerate(texts):
            assert own.ids[row].tolist() == [0, *ids, *[0] * (4 - len(ids))]
            assert own.is_text[row].tolist() == [False, *[True] * len(ids), *[False] * (4 - len(ids))]
            assert own.is_padding[row].tolist() == [False] * (1 + len(ids)) + [True] * (4 - len(ids))
            assert own.is_aligned[row].nonzero().flatten().tolist() == places[row]


def test_rows_without_bos_begin_with_the_text() -> None:
    one, two = byte_bpe("t h", "th e"), byte_bpe("h e")
    (own, _) = unpack(aligner(one, two).rows(["the"], prepend_bos=False), 2)
    assert own.ids.tolist() == [one("the", add_special_tokens=False)["input_ids"]]


def test_a_tokenizer_without_bos_goes_without() -> None:
    without = wrapped(byte_bpe("h e").backend_tokenizer, bos=None)
    own, other = unpack(aligner(byte_bpe("t h"), without).rows(["the"]), 2)
    assert own.is_text.tolist() == [[False, True, True]]
    assert other.is_text.tolist() == [[True, True]]


def test_each_model_reads_no_more_padding_than_its_own_longest_sequence() -> None:
    letters, whole = unpack(aligner(byte_bpe(), whole_text()).rows(["the", "the hen"]), 2)
    assert (letters.ids.shape, whole.ids.shape) == ((2, 8), (2, 2))


def test_the_kept_share_is_that_of_the_texts_own_tokens() -> None:
    one, two = byte_bpe("t h", "th e", "e n"), byte_bpe("h e", "Ġ he")
    # "the hen" has 4 tokens of each, 2 of which end together; "then" has 2 and 3, 2 of which end together.
    shares = kept_shares(unpack(aligner(one, two).rows(["the hen", "then"]), 2))
    assert shares.tolist() == pytest.approx([4 / 6, 4 / 7])


def test_places_on_excluded_ids_of_any_tokenizer_are_left_out() -> None:
    one, two = byte_bpe("t h", "th e", "e n"), byte_bpe("h e", "Ġ he")
    (text,) = aligner(one, two).align(["the hen"])
    n = two.convert_tokens_to_ids("n")
    left = text.without([(), (n,)])
    assert (left.ends, left.positions) == ([3], ([0], [1]))
    assert text.without([(n,), ()]) is text
    assert [sum(code % 4 == 3 for code in row) for row in left.codes] == [1, 1]


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("tokenizer", "found"), [(None, "has no tokenizer"), (object(), "has a object")], ids=["none", "not fast"]
)
def test_a_tokenizer_that_does_not_tell_its_characters_is_refused(tokenizer: Any, found: str) -> None:
    with pytest.raises(SourceError, match=rf"Source 'source1' {found}.*cannot be aligned.*use_fast=True"):
        aligner(tiny_tokenizer(), tokenizer)


def test_rows_of_other_models_are_refused() -> None:
    with pytest.raises(ShapeError, match="Rows of 7 tokens hold no 2 sequences"):
        unpack(torch.zeros(1, 7, dtype=torch.long), 2)
