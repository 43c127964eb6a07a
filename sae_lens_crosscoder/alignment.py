"""Texts that every model reads in tokens of its own, and the positions where the tokens of all models end together.

The residual at a token that ends at character c has seen exactly the text up to c. Where tokens of two tokenizers end
at the same character, both models stand at the same place of the same text, and their activations make one row.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, processors
from torch import Tensor

from sae_lens_crosscoder._saelens import get_special_token_ids
from sae_lens_crosscoder.errors import ShapeError, SourceError

# A token in a packed row is 4 * its id + its kind. A padding token is 0: id 0, on the right, where no causal model has
# it in view of a token that counts.
_BITS = 2
_PADDING, _MARKER, _TEXT, _ALIGNED = range(1 << _BITS)


def token_ends(text: str, offsets: Sequence[tuple[int, int]]) -> dict[int, int]:
    """By character: the token after which exactly the text up to that character has been read.

    Left out are tokens that end within what a later token reads too (all but the last of the tokens that share one
    character), tokens of no text, and those after which characters belong to no token (they were merged into one, or
    dropped); white space may.

    Args:
        text: The text that was tokenized.
        offsets: First character of each token and the one after its last, in `text`.
    """
    ends: dict[int, int] = {}
    later_start = len(text)
    for token in range(len(offsets) - 1, -1, -1):
        start, end = offsets[token]
        if start == end:
            continue
        if end == later_start or text[end:later_start].isspace():
            ends[end] = token
        later_start = min(start, later_start)
    return ends


@dataclass(frozen=True)
class AlignedText:
    """One text in the tokens of each tokenizer, and where those end together."""

    ids: tuple[list[int], ...]
    """Token ids, for each tokenizer."""

    positions: tuple[list[int], ...]
    """For each tokenizer: its tokens at the places where tokens of all end together, in order."""

    ends: list[int]
    """The characters that have been read at these places."""

    def without(self, excluded: Sequence[Sequence[int]]) -> AlignedText:
        """The same without the places where any model reads one of the ids that are excluded for its tokenizer."""
        keep = [
            all(
                ids[row[place]] not in dropped
                for ids, row, dropped in zip(self.ids, self.positions, excluded, strict=True)
            )
            for place in range(len(self.ends))
        ]
        if all(keep):
            return self
        positions = tuple([p for p, kept in zip(row, keep, strict=True) if kept] for row in self.positions)
        return AlignedText(self.ids, positions, [end for end, kept in zip(self.ends, keep, strict=True) if kept])

    @cached_property
    def codes(self) -> tuple[list[int], ...]:
        """For each tokenizer the tokens as they stand in a packed row."""
        codes = tuple([(i << _BITS) + _TEXT for i in ids] for ids in self.ids)
        for row, positions in zip(codes, self.positions, strict=True):
            for position in positions:
                row[position] += _ALIGNED - _TEXT
        return codes


class TextAligner:
    """The tokenizers of a joint model; it finds where their tokens end together.

    Tokenizers that do the same are one. Their post-processors are not run: they add tokens that are no text, and some
    take white space out of the offsets of tokens that read it.

    Args:
        tokenizers: Label and Hugging Face tokenizer of each source.

    Raises:
        SourceError: A source without a tokenizer, or with one that does not tell the characters of its tokens.
    """

    def __init__(self, tokenizers: Sequence[tuple[str, Any]]) -> None:
        self.tokenizers: list[Any] = []
        """The distinct tokenizers."""
        self.of_source: list[int] = []
        """Which of them each source reads."""
        self._backends: list[Tokenizer] = []
        known: list[Any] = []
        for label, tokenizer in tokenizers:
            same = next((i for i, other in enumerate(self.tokenizers) if other is tokenizer), None)
            if same is None:
                backend = _without_post_processor(label, tokenizer)
                special = (tokenizer.bos_token_id, tokenizer.eos_token_id, sorted(get_special_token_ids(tokenizer)))
                identity = (backend.to_str(), special)
                if identity not in known:
                    known.append(identity)
                    self.tokenizers.append(tokenizer)
                    self._backends.append(backend)
                same = known.index(identity)
            self.of_source.append(same)

    def align(self, texts: Sequence[str]) -> list[AlignedText]:
        """Every text in the tokens of each tokenizer, with the places where those end together."""
        by_tokenizer = [backend.encode_batch(list(texts), add_special_tokens=False) for backend in self._backends]
        aligned: list[AlignedText] = []
        for text, encodings in zip(texts, zip(*by_tokenizer, strict=True), strict=True):
            ends = [token_ends(text, encoding.offsets) for encoding in encodings]
            common = sorted(set(ends[0]).intersection(*ends[1:]))
            positions = tuple([own[end] for end in common] for own in ends)
            aligned.append(AlignedText(tuple(encoding.ids for encoding in encodings), positions, common))
        return aligned

    def rows(self, texts: Sequence[str], prepend_bos: bool = True) -> Int[Tensor, "batch _row"]:
        """Texts as packed rows, each after the BOS tokens of the tokenizers that have one."""
        markers = [marker(tokenizer.bos_token_id if prepend_bos else None) for tokenizer in self.tokenizers]
        sequences = [
            [[*bos, *codes] for bos, codes in zip(markers, text.codes, strict=True)] for text in self.align(texts)
        ]
        length = max((len(codes) for sequence in sequences for codes in sequence), default=0)
        return torch.tensor([packed_row(sequence, length) for sequence in sequences], dtype=torch.long)


def marker(token: int | None) -> list[int]:
    """A token that is no text (BOS, a separator) as it stands in a packed row; nothing for None."""
    return [] if token is None else [(token << _BITS) + _MARKER]


def is_same_token(code: int, other: int) -> bool:
    """Whether two tokens of packed rows have one id."""
    return code >> _BITS == other >> _BITS


def unaligned(codes: Sequence[int]) -> list[int]:
    """Tokens of a packed row that no longer count as places where all tokens end together."""
    return [code - (_ALIGNED - _TEXT) if code % (1 << _BITS) == _ALIGNED else code for code in codes]


def packed_row(sequences: Sequence[Sequence[int]], length: int) -> list[int]:
    """One sequence for each tokenizer as one row: each padded on the right to `length`, one after the other."""
    return [code for sequence in sequences for code in (*sequence, *[_PADDING] * (length - len(sequence)))]


@dataclass(frozen=True)
class TokenSequences:
    """What one model reads of packed rows."""

    ids: Int[Tensor, "batch pos"]
    """Token ids, padded on the right."""

    is_aligned: Bool[Tensor, "batch pos"]
    """Where the tokens of all models end together. The n-th such place of a row is the same for all models."""

    is_text: Bool[Tensor, "batch pos"]
    """Neither padding nor BOS nor a separator."""

    is_padding: Bool[Tensor, "batch pos"]
    """After the end of the sequence."""


def unpack(rows: Int[Tensor, "batch _row"], n_tokenizers: int) -> list[TokenSequences]:
    """What the model of each tokenizer reads, as short as its longest sequence.

    Raises:
        ShapeError: The rows are too short or long for that many tokenizers.
    """
    if rows.shape[1] % n_tokenizers:
        raise ShapeError(
            f"Rows of {rows.shape[1]} tokens hold no {n_tokenizers} sequences of equal length: they are no rows of a "
            "joint model with token_alignment='character_offsets'. Make them with joint_model.to_tokens(text)."
        )
    sequences: list[TokenSequences] = []
    for codes in rows.unflatten(1, (n_tokenizers, -1)).unbind(1):
        kinds = codes % (1 << _BITS)
        used = (kinds != _PADDING).any(dim=0).nonzero()
        length = int(used[-1]) + 1 if len(used) else 1
        kinds = kinds[:, :length]
        sequences.append(
            TokenSequences(codes[:, :length] >> _BITS, kinds == _ALIGNED, kinds >= _TEXT, kinds == _PADDING)
        )
    return sequences


def kept_shares(sequences: Sequence[TokenSequences]) -> Float[Tensor, " tokenizer"]:
    """For each tokenizer: positions that are aligned over tokens of text."""
    return torch.tensor([float(s.is_aligned.sum() / s.is_text.sum()) for s in sequences])


def _without_post_processor(label: str, tokenizer: Any) -> Tokenizer:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        found = "no tokenizer" if tokenizer is None else f"a {type(tokenizer).__name__}"
        raise SourceError(
            f"Source {label!r} has {found}, which does not tell the characters that each token stands for, so its "
            "tokens cannot be aligned with those of the other models. Give the model a fast tokenizer "
            "(AutoTokenizer.from_pretrained(name, use_fast=True)), or use models that share a vocabulary."
        )
    plain = copy.deepcopy(backend)
    plain.post_processor = processors.ByteLevel(trim_offsets=False)  # changes nothing
    plain.no_truncation()
    plain.no_padding()
    return plain
