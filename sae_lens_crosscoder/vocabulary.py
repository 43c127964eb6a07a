"""The check that all models of a joint model mean the same by one token id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sae_lens_crosscoder.errors import VocabularyError


def check_shared_vocabulary(tokenizers: Sequence[tuple[str, Any]]) -> None:
    """Compare the vocabularies of labelled tokenizers; models without a tokenizer (None) are passed over.

    Raises:
        VocabularyError: Two vocabularies differ. The message names the first ids whose tokens differ.
    """
    labelled = [(label, tokenizer) for label, tokenizer in tokenizers if tokenizer is not None]
    if not labelled:
        return
    first_label, first_tokenizer = labelled[0]
    first: dict[str, int] = first_tokenizer.get_vocab()
    for label, tokenizer in labelled[1:]:
        if tokenizer is first_tokenizer:
            continue
        other: dict[str, int] = tokenizer.get_vocab()
        if other != first:
            raise VocabularyError(_describe_difference(first_label, first, label, other))


def _describe_difference(label_a: str, vocab_a: dict[str, int], label_b: str, vocab_b: dict[str, int]) -> str:
    by_id_a = {index: token for token, index in vocab_a.items()}
    by_id_b = {index: token for token, index in vocab_b.items()}
    differing = [i for i in sorted(by_id_a.keys() | by_id_b.keys()) if by_id_a.get(i) != by_id_b.get(i)]
    examples = "; ".join(
        f"id {i} is {by_id_a.get(i, 'no token')!r} for {label_a!r} and {by_id_b.get(i, 'no token')!r} for {label_b!r}"
        for i in differing[:3]
    )
    return (
        f"The tokenizers of {label_a!r} and {label_b!r} differ in {len(differing)} token ids: {examples}. "
        "Both models would be fed the same ids, so one of them would read a different text and every latent would "
        "look exclusive to one model. Use models that share a vocabulary, the tokenizer that both were trained with, "
        "or, for models with tokenizers of their own, token_alignment='character_offsets'."
    )
