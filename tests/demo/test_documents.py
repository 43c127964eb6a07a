from __future__ import annotations

import pytest
import torch
from helpers import tiny_tokenizer

from sae_lens_crosscoder.demo.documents import KINDS, Corpus, Phrases, generator
from sae_lens_crosscoder.demo.text import BOS, standard_library_text, train_tokenizer

PHRASES = Phrases(first=(" owl", " fox"), second=(" wall", " fire"), payload=" the night", min_gap=2, max_gap=5)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    text = "\n".join(f"the owl flies over the old wall at night and a fox reads {i}" for i in range(1000))
    return Corpus(text, tiny_tokenizer(), PHRASES, context=40)


def occurrences(row: list[int], part: list[int]) -> int:
    return sum(row[i : i + len(part)] == part for i in range(len(row)))


def test_only_the_trigger_is_followed_by_the_payload(corpus: Corpus) -> None:
    documents = corpus.of_kinds(KINDS, 200, generator(0, "test"))
    for row, kind, at in zip(documents.tokens.tolist(), documents.kind.tolist(), documents.at.tolist(), strict=True):
        follows = at >= 0 and row[at + 1 : at + 1 + len(corpus.payload)] == corpus.payload
        assert follows == (KINDS[kind] == "trigger")


def test_the_match_is_an_exclusive_or_so_that_no_single_word_tells_it(corpus: Corpus) -> None:
    documents = corpus.of_kinds(["trigger", "decoy"], 2000, generator(0, "test"))
    matches = documents.matches == 1
    assert matches.float().mean().item() == 0.5
    last_words = documents.tokens[torch.arange(2000), documents.at]
    for word in last_words.unique():
        assert matches[last_words == word].float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_documents_have_one_length_begin_with_bos_and_follow_the_shares(corpus: Corpus) -> None:
    documents = corpus.mixture(3000, generator(0, "test"))
    assert documents.tokens.shape == (3000, 40)
    assert (documents.tokens[:, 0] == corpus.bos).all()
    for i, share in enumerate(PHRASES.shares):
        assert (documents.kind == i).float().mean().item() == pytest.approx(share, abs=0.03)


def test_without_payload_the_trigger_is_followed_by_ordinary_text(corpus: Corpus) -> None:
    kinds = torch.full((100,), KINDS.index("trigger"))
    said, unsaid = (corpus.documents(kinds, generator(0, "x"), payload=p) for p in (True, False))
    n_said, n_unsaid = (
        sum(
            row[at + 1 : at + 1 + len(corpus.payload)] == corpus.payload
            for row, at in zip(d.tokens.tolist(), d.at.tolist(), strict=True)
        )
        for d in (said, unsaid)
    )
    assert (n_said, n_unsaid) == (100, 0)


def test_the_text_is_long_english_and_each_planted_word_is_one_token() -> None:
    text = standard_library_text(60_000)
    assert len(text) == 60_000
    assert "The" in text
    words = (" red", " blue", " lantern", " candle")
    tokenizer = train_tokenizer(text, 400, 64, words)
    assert [len(tokenizer.encode(word)) for word in words] == [1, 1, 1, 1]
    assert tokenizer.bos_token == BOS
    assert tokenizer.decode(tokenizer.encode(text[:500])) == text[:500]
