"""Tokenizers that cut text in other places than `helpers.tiny_tokenizer`. Everything is made here."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from helpers import SENTENCES
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def wrapped(tokenizer: Tokenizer, bos: str | None = "<s>", **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, **special)


def byte_bpe(*merges: str, use_regex: bool = True, **special: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE that makes the given merges ("t h" makes "th"), in that order; "<s>" is token 0."""
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    vocabulary = {token: i for i, token in enumerate(["<s>", *BYTES, *(left + right for left, right in pairs)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>"])
    return wrapped(tokenizer, **special)


@lru_cache
def other_bpe() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 280 tokens that merges across words, as `tiny_tokenizer` does not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, trainers.BpeTrainer(vocab_size=280, special_tokens=["<s>"], initial_alphabet=BYTES))
    return wrapped(tokenizer)


@lru_cache
def metaspace() -> PreTrainedTokenizerFast:
    """As SentencePiece's: spaces are part of the word that follows, unknown characters are bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<s>", "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    _train(tokenizer, trainers.BpeTrainer(vocab_size=320, special_tokens=special))
    return wrapped(tokenizer, unk_token="<unk>")


@lru_cache
def word_pieces() -> PreTrainedTokenizerFast:
    """As BERT's: lower case, without accents, and white space belongs to no token."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    _train(tokenizer, trainers.WordPieceTrainer(vocab_size=150, special_tokens=["<s>", "[UNK]"]))
    return wrapped(tokenizer, unk_token="[UNK]")


@lru_cache
def whole_text() -> PreTrainedTokenizerFast:
    """One token for a whole text, whatever it says."""
    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "<unk>": 1}, unk_token="<unk>"))
    return wrapped(tokenizer, unk_token="<unk>")


def _train(tokenizer: Tokenizer, trainer: Any) -> None:
    trainer.show_progress = False
    tokenizer.train_from_iterator(SENTENCES * 20, trainer)
