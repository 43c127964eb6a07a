from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import CONTEXT, SENTENCES, fresh_tokenizer, text_dataset, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from other_tokenizers import byte_bpe, metaspace, other_bpe, whole_text, word_pieces

from sae_lens_crosscoder import DatasetConfig
from sae_lens_crosscoder.activations import SequenceFormat
from sae_lens_crosscoder.activations.aligned_sequences import AlignedPacking, check_kept_shares
from sae_lens_crosscoder.activations.datasets import packed_sequences
from sae_lens_crosscoder.alignment import TextAligner, TokenSequences, unpack
from sae_lens_crosscoder.errors import DataError

DOCUMENTS = st.lists(st.text(st.sampled_from("the owl é🦊\n"), max_size=60), min_size=1, max_size=5)


def packing(form: SequenceFormat, *tokenizers: Any, excludes_special_tokens: bool = False) -> AlignedPacking:
    aligner = TextAligner([(f"source{i}", tokenizer) for i, tokenizer in enumerate(tokenizers)])
    return AlignedPacking(aligner, form, excludes_special_tokens)


def packed(texts: list[str], form: SequenceFormat, *tokenizers: Any, **fields: Any) -> list[TokenSequences]:
    pack = packing(form, *tokenizers, **fields)
    return unpack(torch.tensor(list(pack.rows(texts)), dtype=torch.long), len(pack.aligner.tokenizers))


def read(tokenizer: Any, own: TokenSequences, row: int) -> list[str]:
    """The tokens of a row without padding; those at which all end together in capitals."""
    tokens = tokenizer.convert_ids_to_tokens(own.ids[row].tolist())
    marked = [t.upper() if kept else t for t, kept in zip(tokens, own.is_aligned[row].tolist(), strict=True)]
    return [t for t, padding in zip(marked, own.is_padding[row].tolist(), strict=True) if not padding]


# ------------------------------------------------------------------------------ worked out by hand


def test_a_sequence_ends_at_the_last_common_place_before_one_model_has_read_its_context() -> None:
    one, two = byte_bpe("t h", "th e", "e n"), byte_bpe("h e", "Ġ he")
    # the|Ġ|h|en|Ġ|h|en and t|he|Ġhe|n|Ġhe|n: a context of 6 with BOS has room for 5 tokens.
    own, other = packed(["the hen hen"] * 2, SequenceFormat(6), one, two)
    assert read(one, own, 0) == ["<s>", "THE", "Ġ", "h", "EN"]
    assert read(two, other, 0) == ["<s>", "t", "HE", "Ġhe", "N"]
    # The rest goes on in the next row, and after a separator comes the second text, of which "the" still fits.
    assert read(one, own, 1) == ["<s>", "Ġ", "h", "EN", "<s>", "THE"]
    assert read(two, other, 1) == ["<s>", "Ġhe", "N", "<s>", "t", "HE"]


def test_a_separator_is_each_tokenizers_own_and_one_that_has_none_goes_without() -> None:
    one = byte_bpe("t h", eos_token="Z")
    two = byte_bpe("h e")
    own, other = packed(["he", "the"] * 3, SequenceFormat(8, sequence_separator_token="eos"), one, two)
    assert read(one, own, 0) == ["<s>", "h", "E", "Z", "th", "E"]
    assert read(two, other, 0) == ["<s>", "HE", "t", "HE"]


def test_text_without_a_common_place_in_a_whole_context_is_read_but_never_kept() -> None:
    # The second tokenizer's only place is the end of the text.
    long = "the hen " * 5
    own, other = packed([long, "the"], SequenceFormat(6), byte_bpe("t h", "th e"), whole_text())
    assert not own.is_aligned[0].any()
    assert not other.is_aligned[0].any()
    assert int(own.is_text[0].sum()) == 5
    assert read(whole_text(), other, 0) == ["<s>", "<unk>"]


def test_one_document_a_sequence_drops_documents_that_are_too_short_and_the_rest_of_long_ones() -> None:
    form = SequenceFormat(6, disable_concat_sequences=True)
    one, two = byte_bpe("t h", "th e", "e n"), byte_bpe("h e", "Ġ he")
    own, other = packed(["the", "the hen hen", "the hen", "then the"], form, one, two)
    assert [read(one, own, row) for row in range(len(own.ids))] == [
        ["<s>", "THE", "Ġ", "h", "EN"],
        ["<s>", "THE", "N", "Ġ"],
    ]
    # The second tokenizer needs 6 tokens for the last document and has room for 5.
    assert read(two, other, 1) == ["<s>", "t", "HE", "N", "Ġ"]


def test_text_that_begins_with_a_tokenizers_bos_gets_no_second_one_from_it() -> None:
    # As chat templates write it; to the other tokenizer it is plain text.
    one, two = tiny_tokenizer(), byte_bpe()
    own, other = packed(["<bos>he"] * 2, SequenceFormat(9), one, two)
    # The end of ">" is that of "<bos>"; it counts, unless special tokens are left out.
    assert read(one, own, 0) == ["<BOS>", "HE"]
    assert read(two, other, 0) == ["<s>", "<", "b", "o", "s", ">", "h", "E"]


def test_what_follows_the_last_common_place_of_a_text_is_read_too() -> None:
    one = byte_bpe("t h", "th e", "e n", "Ġ h", "Ġh en")
    own, other = packed(["the  ", "the hen"] * 2, SequenceFormat(9), one, word_pieces())
    assert read(one, own, 0)[:6] == ["<s>", "THE", "Ġ", "Ġ", "<s>", "THE"]
    assert read(word_pieces(), other, 0)[:4] == ["<s>", "THE", "<s>", "THE"]


def test_special_tokens_in_the_text_are_kept_or_left_out_as_asked() -> None:
    one, two = fresh_tokenizer(), metaspace()
    texts = ["the owl<bos>flies over the old wall at night"] * 2
    for excludes, expected in ((False, True), (True, False)):
        own, _ = packed(texts, SequenceFormat(16), one, two, excludes_special_tokens=excludes)
        within = own.ids[0, 1:] == 0
        assert own.is_aligned[0, 1:][within & own.is_text[0, 1:]].any() == expected
        assert own.is_aligned.any()


# ------------------------------------------------------------------------------------- properties


@settings(deadline=None)
@given(texts=DOCUMENTS, context=st.integers(3, 12), bos=st.booleans(), alone=st.booleans())
def test_rows_fit_every_context_and_hold_as_many_places_of_each_tokenizer(
    texts: list[str], context: int, bos: bool, alone: bool
) -> None:
    tokenizers = (tiny_tokenizer(), other_bpe(), word_pieces())
    pack = packing(SequenceFormat(context, prepend_bos=bos, disable_concat_sequences=alone), *tokenizers)
    rows = list(pack.rows(texts))
    assert all(len(row) == 3 * context for row in rows)
    if not rows:
        return
    sequences = unpack(torch.tensor(rows), 3)
    counts = [own.is_aligned.sum(dim=1).tolist() for own in sequences]
    assert counts[0] == counts[1] == counts[2]
    for own in sequences:
        assert not (own.is_aligned & ~own.is_text).any()


@settings(deadline=None)
@given(texts=DOCUMENTS, context=st.integers(8, 20))
def test_at_every_place_of_a_row_both_models_have_read_the_same_characters(texts: list[str], context: int) -> None:
    tokenizers = (tiny_tokenizer(), other_bpe())
    rows = list(packing(SequenceFormat(context, sequence_separator_token=None), *tokenizers).rows(texts))
    for row in rows:
        read_so_far = []
        for tokenizer, own in zip(tokenizers, unpack(torch.tensor([row]), 2), strict=True):
            places = own.is_aligned[0].nonzero().flatten().tolist()
            read_so_far.append([tokenizer.decode(own.ids[0, 1 : place + 1]) for place in places])
        assert read_so_far[0] == read_so_far[1]


@pytest.mark.parametrize(
    "form",
    [
        SequenceFormat(CONTEXT),
        SequenceFormat(CONTEXT, prepend_bos=False),
        SequenceFormat(CONTEXT, sequence_separator_token=None),
        SequenceFormat(10, disable_concat_sequences=True),
    ],
)
def test_equal_tokenizers_give_the_sequences_of_models_that_read_the_same_ids(form: SequenceFormat) -> None:
    usual = packed_sequences(text_dataset(100), DatasetConfig(), tiny_tokenizer(), form)
    expected = [row["input_ids"] for row in usual]
    (own,) = packed(list(text_dataset(100)["text"]), form, tiny_tokenizer(), fresh_tokenizer())
    assert len(expected) == len(own.ids) >= 50
    for row, ids in enumerate(expected):
        # A separator for which there is room, but after which there is none, is left out.
        kept = own.ids[row][~own.is_padding[row]].tolist()
        assert ids in (kept, [*kept, 0])


# -------------------------------------------------------------------------------------- data sets


def test_tokenized_data_are_refused() -> None:
    from helpers import token_dataset

    pack = packing(SequenceFormat(CONTEXT), tiny_tokenizer(), other_bpe())
    with pytest.raises(DataError, match=r"'ids' is tokenized already .*Give a data set of text or chats"):
        packed_sequences(token_dataset(), DatasetConfig(label="ids"), tiny_tokenizer(), pack.form, pack.rows)


def test_chats_are_one_text_for_all_models() -> None:
    from datasets import Dataset

    chats = Dataset.from_dict({"messages": [[{"role": "user", "content": SENTENCES[0]}]] * 30})
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    tokenizers = (tiny_tokenizer(), other_bpe())
    pack = packing(SequenceFormat(CONTEXT), *tokenizers)
    config = DatasetConfig(label="chats", chat_template=template)
    stream = packed_sequences(chats, config, tiny_tokenizer(), pack.form, pack.rows)
    sequences = unpack(torch.tensor([row["input_ids"] for row in stream]), 2)
    for tokenizer, own in zip(tokenizers, sequences, strict=True):
        text = tokenizer.decode(own.ids[0][own.is_text[0]])
        assert f"user: {SENTENCES[0]}\n".startswith(text)
        assert len(text) > 10


# ----------------------------------------------------------------------------------------- shares


def test_tokenizers_that_hardly_ever_end_together_are_refused_with_their_shares() -> None:
    check_kept_shares({"base": 0.1, "chat": 1.0})
    with pytest.raises(DataError, match=r"\(base: 9.9%, chat: 100.0% of .* at least 10% should\)"):
        check_kept_shares({"base": 0.099, "chat": 1.0})
    with pytest.raises(DataError, match="base: no token at all"):
        check_kept_shares({"chat": 1.0, "base": float("nan")})
