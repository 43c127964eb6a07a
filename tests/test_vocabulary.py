from __future__ import annotations

from dataclasses import dataclass

import pytest
from helpers import fresh_tokenizer, source, tiny_model

from sae_lens_crosscoder import JointModel, Sources
from sae_lens_crosscoder.errors import VocabularyError
from sae_lens_crosscoder.vocabulary import check_shared_vocabulary


@dataclass
class Vocabulary:
    """Of a tokenizer only the vocabulary is read."""

    tokens: list[str]

    def get_vocab(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}


def test_equal_vocabularies_of_two_tokenizers_pass():
    check_shared_vocabulary([("base", Vocabulary(["a", "b"])), ("chat", Vocabulary(["a", "b"]))])


def test_models_without_a_tokenizer_are_passed_over():
    check_shared_vocabulary([("base", None), ("chat", None)])
    check_shared_vocabulary([("base", None), ("chat", Vocabulary(["a"])), ("third", Vocabulary(["a"]))])


def test_the_first_differing_tokens_are_named_with_their_ids_and_what_would_follow():
    base, chat = Vocabulary(list("abcdef")), Vocabulary(list("abXYZW"))
    with pytest.raises(VocabularyError) as caught:
        check_shared_vocabulary([("base", base), ("chat", chat)])
    message = str(caught.value)
    assert "tokenizers of 'base' and 'chat' differ in 4 token ids" in message
    for i, (a, b) in enumerate(zip("cde", "XYZ", strict=True), start=2):
        assert f"id {i} is {a!r} for 'base' and {b!r} for 'chat'" in message
    assert "id 5" not in message
    assert "every latent would look exclusive to one model" in message


def test_a_token_that_only_one_vocabulary_has_is_named():
    with pytest.raises(VocabularyError, match="id 2 is 'no token' for 'base' and 'c' for 'chat'"):
        check_shared_vocabulary([("base", Vocabulary(["a", "b"])), ("chat", Vocabulary(["a", "b", "c"]))])


def test_the_third_model_is_compared_too():
    same = Vocabulary(["a", "b"])
    with pytest.raises(VocabularyError, match="'base' and 'third' differ in 2 token ids"):
        check_shared_vocabulary([("base", same), ("chat", same), ("third", Vocabulary(["b", "a"]))])


def test_a_joint_model_of_two_vocabularies_is_refused():
    other = fresh_tokenizer()
    other.add_tokens(["<turn>"])
    models = [tiny_model(tokenizer=fresh_tokenizer()), tiny_model(1, tokenizer=other)]
    with pytest.raises(VocabularyError, match="id 300 is 'no token' for 'base' and '<turn>' for 'chat'"):
        JointModel(Sources((source("base"), source("chat"))), models)
