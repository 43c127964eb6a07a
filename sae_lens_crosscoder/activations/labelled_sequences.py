"""Token sequences of a mixture that know what they are: from which data set, and which role every token has."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from datasets import Dataset, IterableDataset
from jaxtyping import Int
from torch import Tensor

from sae_lens_crosscoder.activations.datasets import (
    DatasetConfig,
    SequenceFormat,
    check_document,
    kind_and_column,
    mixture_weights,
)
from sae_lens_crosscoder.activations.token_roles import (
    RoledTokens,
    TokenRole,
    chat_token_roles,
    pack_with_roles,
    text_token_roles,
)
from sae_lens_crosscoder.errors import DataError


@dataclass(frozen=True)
class LabelledSequences:
    """Sequences of equal length with the data set of each and the role of every token.

    Raises:
        DataError: There are none.
    """

    tokens: Int[Tensor, "n_sequences context"]
    """Token ids."""

    roles: Int[Tensor, "n_sequences context"]
    """Number of the `TokenRole` of every token."""

    datasets: Int[Tensor, " n_sequences"]
    """Which of `dataset_names` each sequence is from."""

    dataset_names: list[str]
    """The data sets of the mixture."""

    def __post_init__(self) -> None:
        if len(self.tokens) == 0:
            raise DataError("There are no sequences to look at: the data sets are shorter than one sequence.")

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def collect(
        cls,
        documents: Mapping[str, Dataset | IterableDataset],
        configs: Sequence[DatasetConfig],
        tokenizer: Any,
        form: SequenceFormat,
        budget_tokens: int,
    ) -> LabelledSequences:
        """The first sequences of every data set, as many of each as its weight says, in even alternation.

        So the first sequences of the result hold the data sets in the same shares. Data sets that end early give what
        they have.

        Args:
            documents: The data sets, opened, by title.
            configs: What each data set is and its share.
            tokenizer: The models' tokenizer.
            form: How documents become sequences.
            budget_tokens: Tokens of all sequences together.
        """
        found: list[tuple[float, int, RoledTokens]] = []
        for i, (config, weight) in enumerate(zip(configs, mixture_weights(configs), strict=True)):
            wanted = max(1, round(weight * budget_tokens / form.context_size))
            taken = list(islice(labelled_rows(documents[config.title], config, tokenizer, form), wanted))
            if not taken:
                raise DataError(
                    f"Data set {config.title!r} gives no full sequence of {form.context_size} tokens. Use more data, "
                    "or lower context_size."
                )
            found += [((k + 0.5) / len(taken), i, row) for k, row in enumerate(taken)]
        found.sort(key=lambda entry: entry[:2])
        shape = (len(found), form.context_size)
        return cls(
            tokens=torch.tensor([row.token_ids for _, _, row in found], dtype=torch.long).reshape(shape),
            roles=torch.tensor([row.roles for _, _, row in found], dtype=torch.long).reshape(shape),
            datasets=torch.tensor([i for _, i, _ in found], dtype=torch.long),
            dataset_names=[config.title for config in configs],
        )


def labelled_rows(
    documents: Dataset | IterableDataset, config: DatasetConfig, tokenizer: Any, form: SequenceFormat
) -> Iterator[RoledTokens]:
    """The data set as sequences of `context_size` tokens with their roles; tokenized rows have no template.

    Raises:
        DataError: No column to read, or text without a tokenizer.
    """
    plain = documents.with_format(None)
    first = next(iter(plain), None)
    if first is None:
        raise DataError(f"Data set {config.title!r} is empty. Look at its path, split and configuration name.")
    kind, column = kind_and_column(cast("dict[str, Any]", first), config)
    values = _checked((cast("dict[str, Any]", row)[column] for row in plain), kind, column, config)
    if kind == "tokens":
        for ids in values:
            if len(ids) >= form.context_size:
                cut = [int(i) for i in ids[: form.context_size]]
                yield RoledTokens(cut, [int(TokenRole.TEXT)] * len(cut))
        return
    if tokenizer is None:
        raise DataError(f"Data set {config.title!r} holds {kind}, but the models have no tokenizer.")
    read = _chat_reader(config, tokenizer) if kind == "chat" else lambda text: text_token_roles(text, tokenizer)
    yield from pack_with_roles((roled for value in values if (roled := read(value)) is not None), tokenizer, form)


def _chat_reader(config: DatasetConfig, tokenizer: Any) -> Callable[[Any], RoledTokens | None]:
    """Reads chats; one whose roles cannot be told (a message without text) is left out, with one warning."""
    has_warned = False

    def read(chat: Any) -> RoledTokens | None:
        nonlocal has_warned
        try:
            return chat_token_roles(chat, tokenizer, config.chat_template)
        except DataError as error:
            if not has_warned:
                warnings.warn(f"Chats of {config.title!r} are left out: {error}", stacklevel=2)
            has_warned = True
            return None

    return read


def _checked(values: Iterable[Any], kind: str, column: str, config: DatasetConfig) -> Iterator[Any]:
    for value in values:
        check_document(value, kind, column, config)
        yield value
