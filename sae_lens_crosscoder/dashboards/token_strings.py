"""Tokens as readers expect them: decoded, with their leading spaces."""

from __future__ import annotations

from typing import Any

from sae_lens_crosscoder.fingerprint import fingerprint

PADDING = -1
"""Id of places of a context that lie outside its sequence."""

_N_DECODED = 2048
"""Tokens that stand for how all are decoded."""

_SHOWN = {"\n": "⏎", "\t": "⇥", "\r": "␍"}


class TokenStrings(dict[int, str]):
    """The string of every token id, decoded when it is first asked for; `[17]` where the tokenizer says nothing.

    Tokenizers hold tokens in spellings of their own ("Ġthe", "▁the", "Ã©"), which sae-dashboard shows as they are.
    """

    def __init__(self, tokenizer: Any) -> None:
        super().__init__({PADDING: ""})
        self.tokenizer = tokenizer

    def __missing__(self, token: int) -> str:
        self[token] = text = _decoded(self.tokenizer, int(token))
        return text

    def fingerprint(self, d_vocab: int) -> str:
        """Changes with the vocabulary, and with the way in which tokens are decoded.

        Args:
            d_vocab: Tokens of the model.
        """
        some = range(0, d_vocab, max(1, d_vocab // _N_DECODED))
        vocabulary = None if self.tokenizer is None else self.tokenizer.get_vocab()
        return fingerprint({"vocabulary": vocabulary, "decoded": [_decoded(self.tokenizer, token) for token in some]})

    def shown(self, token: int) -> str:
        """The string for a page of sae-dashboard: line breaks are visible, and entities stay what they are."""
        text = "".join(_SHOWN.get(character, character) for character in self[token])
        # sae-dashboard turns what looks like an HTML entity into its character; an invisible joiner prevents it.
        return text.replace("&", "&\u2060") if len(text) > 1 else text


def _decoded(tokenizer: Any, token: int) -> str:
    if tokenizer is None:
        return f"[{token}]"
    text = tokenizer.decode([token])
    spelt = tokenizer.convert_ids_to_tokens(token)
    if isinstance(spelt, str) and spelt.startswith("▁") and not text.startswith(" "):
        # A tokenizer of SentencePiece drops the space before what it takes for the first word.
        text = f" {text}"
    return text or f"[{token}]"
