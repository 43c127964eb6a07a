"""Documents packed into sequences for several tokenizers at once: one row holds the same text in the tokens of each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan

from sae_lens import logger

from sae_lens_crosscoder._saelens import get_special_token_from_cfg
from sae_lens_crosscoder.activations.datasets import SequenceFormat
from sae_lens_crosscoder.activations.store_config import excluded_token_ids
from sae_lens_crosscoder.alignment import AlignedText, TextAligner, is_same_token, marker, packed_row, unaligned
from sae_lens_crosscoder.errors import DataError

SMALLEST_KEPT_SHARE = 0.1
"""A run that keeps fewer of a source's tokens would train on a remnant of the text."""


@dataclass(frozen=True)
class AlignedPacking:
    """Packs texts as SAELens's `concat_and_batch_sequences` does, so that no model reads more than `context_size`.

    A sequence ends at the last place where tokens of all tokenizers end together before one of them is full; those that
    are not full are padded. BOS and separators are each tokenizer's own; one that has none goes without.
    """

    aligner: TextAligner
    """The tokenizers."""

    form: SequenceFormat
    """The length in tokens, and what stands at the beginning and between documents."""

    excludes_special_tokens: bool = False
    """Whether places are left out where any model reads a BOS, EOS, padding or separator that the text holds."""

    def rows(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Packed rows of `context_size` tokens a tokenizer; texts that do not fill one at the end are dropped."""
        size, alone = self.form.context_size, self.form.disable_concat_sequences
        row: list[list[int]] = [[] for _ in self.aligner.tokenizers]
        for text in self._aligned(texts):
            cuts = _cuts(text)
            at, end = 0, len(cuts[0]) - 1
            while at < end:
                rest = [codes[cut[at] : cut[at] + size] for codes, cut in zip(text.codes, cuts, strict=True)]
                begun = self._begun(row, rest)
                rooms = [size - len(own) for own in begun]
                stop = min(bisect_right(cut, cut[at] + room) for cut, room in zip(cuts, rooms, strict=True)) - 1
                if stop > at:
                    lengths = [cut[stop] - cut[at] for cut in cuts]
                    row = [[*own, *codes[:n]] for own, codes, n in zip(begun, rest, lengths, strict=True)]
                elif not any(row):
                    # Tokens end together nowhere within a whole sequence.
                    stop = at + 1
                    lengths = [min(cut[stop] - cut[at], room) for cut, room in zip(cuts, rooms, strict=True)]
                    row = [[*own, *unaligned(codes[:n])] for own, codes, n in zip(begun, rest, lengths, strict=True)]
                at = max(at, stop)
                if at < end:
                    yield packed_row(row, size)
                    row = [[] for _ in row]
                    if alone:
                        break
            if alone or self._is_full(row):
                if self._is_full(row):
                    yield packed_row(row, size)
                row = [[] for _ in row]

    def _aligned(self, texts: Sequence[str]) -> Iterator[AlignedText]:
        excluded = [excluded_token_ids(self.excludes_special_tokens, t) for t in self.aligner.tokenizers]
        for text in self.aligner.align(texts):
            yield text.without(excluded)

    def _begun(self, row: list[list[int]], rest: list[list[int]]) -> list[list[int]]:
        """The row with BOS or a separator for each tokenizer, unless the text that follows begins with that itself."""
        separator = self.form.sequence_separator_token if any(row) else "bos" if self.form.prepend_bos else None
        markers = [marker(get_special_token_from_cfg(separator, t)) for t in self.aligner.tokenizers]
        return [
            own if token and codes and is_same_token(token[0], codes[0]) else [*own, *token]
            for own, token, codes in zip(row, markers, rest, strict=True)
        ]

    def _is_full(self, row: Sequence[Sequence[int]]) -> bool:
        return any(len(own) == self.form.context_size for own in row)


def check_kept_shares(shares: Mapping[str, float]) -> None:
    """Log the share of each source's tokens that give a row.

    Raises:
        DataError: It is below `SMALLEST_KEPT_SHARE` for a source.
    """
    listed = ", ".join(
        f"{label}: {'no token at all' if isnan(share) else format(share, '.1%')}" for label, share in shares.items()
    )
    # A share of no tokens is NaN, and no comparison holds for it.
    if not all(share >= SMALLEST_KEPT_SHARE for share in shares.values()):
        raise DataError(
            f"Hardly any tokens of the models end at the same character ({listed} of their tokens do; at least "
            f"{SMALLEST_KEPT_SHARE:.0%} should). Most of the text would be lost, and what is left would be an odd "
            "selection. Look whether the tokenizers suit the language of the data, or use models whose tokenizers are "
            "more alike."
        )
    logger.info("Positions kept where the tokens of all models end together: %s of their tokens", listed)


def _cuts(text: AlignedText) -> list[list[int]]:
    """How many tokens of each tokenizer stand before the places where the text may be cut, its ends among them."""
    cuts = [[0, *(position + 1 for position in positions)] for positions in text.positions]
    lengths = [len(ids) for ids in text.ids]
    if [cut[-1] for cut in cuts] != lengths:
        for cut, length in zip(cuts, lengths, strict=True):
            cut.append(length)
    return cuts
