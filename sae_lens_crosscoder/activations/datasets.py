"""The text that activations are harvested from: one data set or a weighted mixture, as sequences of equal length.

Every data set is tokenized and packed into sequences of `context_size` tokens on its own, and the mixture draws whole
*sequences* by weight (`datasets.interleave_datasets`). So weights are shares of tokens, however long the documents are,
no sequence mixes two data sets, and the position in the stream is the data set library's own `state_dict`.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from datasets import Dataset, DatasetDict, IterableDataset, interleave_datasets, load_dataset, load_from_disk
from torch import Tensor

from sae_lens_crosscoder._saelens import concat_and_batch_sequences, get_special_token_from_cfg
from sae_lens_crosscoder.activations.stream_care import Patience, StreamCare
from sae_lens_crosscoder.activations.stream_faults import fault_of
from sae_lens_crosscoder.chat_template import render_chat
from sae_lens_crosscoder.errors import ConfigError, CrosscoderError, DataError, NotFoundError, first_line
from sae_lens_crosscoder.fields import checked_fields
from sae_lens_crosscoder.newer_files import read_newer_datasets

DatasetKind = Literal["auto", "text", "tokens", "chat"]

TextPacker = Callable[[Sequence[str]], Iterable[list[int]]]
"""Makes rows of equal length out of texts."""

_COLUMNS: dict[str, tuple[str, ...]] = {
    "tokens": ("tokens", "input_ids"),
    "chat": ("messages", "conversation", "conversations"),
    "text": ("text", "problem"),
}
_DOCUMENTS_A_BATCH = 1000
_DOCUMENTS_MEASURED = 8
# A second of tokenizing, and enough that the tokens which fill no sequence at the end of a batch are few.
_CHARACTERS_A_BATCH = 4_000_000


@dataclass(frozen=True)
class DatasetConfig:
    """One data set of the mixture.

    Raises:
        ConfigError: An unknown kind, a weight that is not positive, or a chat template for what is not a chat.
    """

    path: str = ""
    """Hub id, or a folder written by `Dataset.save_to_disk`, or a builder such as "json" with `data_files`."""

    label: str = ""
    """Name of the data set in metrics; the last part of `path` if empty."""

    weight: float | None = None
    """Share of the training sequences, and so of the tokens. All or none of a mixture give one; they add up to 1."""

    kind: DatasetKind = "auto"
    """"text", "tokens" (already tokenized), "chat" (lists of {"role", "content"}), or "auto": by the column's name."""

    column: str | None = None
    """Column that is read; None takes the first usual one ("text", "input_ids", "messages", ...)."""

    chat_template: str | None = None
    """Jinja template for this data set's chats; None is the tokenizer's own."""

    name: str | None = None
    """Configuration of the data set on the Hub."""

    split: str = "train"
    """Split that is read."""

    data_files: str | list[str] | None = None
    """Files for a builder such as "json" or "text"."""

    streaming: bool = True
    """Read the data set as a stream instead of downloading it first."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(DatasetKind):
            raise ConfigError(f"Data set kind {self.kind!r} is unknown. Use one of {', '.join(get_args(DatasetKind))}.")
        if self.weight is not None and not self.weight > 0:
            raise ConfigError(f"Data set {self.title!r} has weight {self.weight}: weights are positive shares.")
        if self.chat_template is not None and self.kind not in ("auto", "chat"):
            raise ConfigError(f"Data set {self.title!r} is {self.kind!r} but has a chat_template. Set kind='chat'.")

    @property
    def title(self) -> str:
        """The label, or what stands in for it."""
        return self.label or self.path.rstrip("/").rsplit("/", 1)[-1] or "data"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetConfig:
        """The data set that a mapping of its fields describes.

        Raises:
            ConfigError: An unknown field, or one of another type.
        """
        names = values if isinstance(values, Mapping) else {}  # pyright: ignore[reportUnnecessaryIsInstance]
        what = f"Data set {names.get('label') or names.get('path')!r}" if names else "A data set"
        return cls(**checked_fields(cls, values, what, ConfigError))


@dataclass(frozen=True)
class SequenceFormat:
    """How documents become sequences: SAELens's own options."""

    context_size: int
    prepend_bos: bool = True
    sequence_separator_token: int | Literal["bos", "eos", "sep"] | None = "bos"
    disable_concat_sequences: bool = False


def mixture_weights(configs: Sequence[DatasetConfig]) -> list[float]:
    """The shares of the data sets: as given, or equal ones if none is given.

    Raises:
        ConfigError: Some data sets have a weight and others none, weights that do not add up to 1, or equal labels.
    """
    titles = [config.title for config in configs]
    twice = sorted({t for t in titles if titles.count(t) > 1})
    if twice:
        raise ConfigError(f"Two data sets are called {', '.join(map(repr, twice))}. Give each a label of its own.")
    given = [config.weight for config in configs if config.weight is not None]
    if not given:
        return [1 / len(configs)] * len(configs)
    shares = ", ".join(f"{config.title}: {config.weight}" for config in configs)
    if len(given) != len(configs):
        raise ConfigError(f"Some data sets have a weight and some have none ({shares}). Give each a weight or none.")
    if abs(sum(given) - 1) > 1e-6:
        raise ConfigError(
            f"The weights of the data sets add up to {sum(given):g}, not 1 ({shares}). They are shares of the tokens: "
            f"divide each by {sum(given):g} if you meant proportions."
        )
    return given


def load_documents(config: DatasetConfig, care: StreamCare | None = None) -> Dataset | IterableDataset:
    """Open one data set with the `datasets` library.

    Args:
        config: The data set.
        care: How long to try again where a server does not answer; None does not.

    Raises:
        ConfigError: There is no path.
        NotFoundError: The library finds no such data set.
        StreamError: The server that has it cannot be reached.
        DataError: It has no such split or configuration, cannot be decoded, or may not be read.
    """
    if not config.path:
        raise ConfigError("A data set has no path. Set dataset_path, or a path for each entry of datasets.")
    read_newer_datasets()
    care = care or StreamCare(Patience(retries=0))
    n_failed = 0
    while True:
        try:
            return _opened(config)
        except CrosscoderError:
            raise
        except Exception as error:
            fault = fault_of(error)
            if fault == "broken":
                n_failed += 1
                care.wait_to_retry(config.title, "its opening", error, n_failed)
                continue
            if isinstance(error, FileNotFoundError):
                raise NotFoundError(f"Data set {config.path!r} cannot be opened: {first_line(error)}") from error
            if fault == "corrupt" or isinstance(error, (ValueError, OSError)):
                raise DataError(
                    f"Data set {config.path!r} cannot be opened: {first_line(error)} Check its name and split, and "
                    "that its files are whole."
                ) from error
            raise


def _opened(config: DatasetConfig) -> Dataset | IterableDataset:
    if (Path(config.path) / "state.json").is_file():
        return cast(Dataset, load_from_disk(config.path))
    if (Path(config.path) / "dataset_dict.json").is_file():
        splits = cast(DatasetDict, load_from_disk(config.path))
        if config.split not in splits:
            raise DataError(
                f"Data set {config.path!r} has no split {config.split!r}. It has {', '.join(map(repr, splits))}."
            )
        return splits[config.split]
    return load_dataset(
        config.path, config.name, split=config.split, data_files=config.data_files, streaming=config.streaming
    )


def packed_sequences(
    documents: Dataset | IterableDataset,
    config: DatasetConfig,
    tokenizer: Any,
    form: SequenceFormat,
    pack_texts: TextPacker | None = None,
) -> IterableDataset:
    """The data set as a stream of `{"input_ids": context_size token ids, "dataset": its title}`.

    Documents are packed by SAELens's `concat_and_batch_sequences`, 1,000 at a time or, if they are long, so many that
    the first sequence need not wait; the few tokens that do not fill a sequence at the end of such a batch are dropped.
    Rows that are already tokenized are cut to `context_size`.

    Args:
        documents: The data set.
        config: What it is.
        tokenizer: Tokenizes texts, and writes chats as texts.
        form: How documents become sequences.
        pack_texts: Packs texts in place of the tokenizer, for models that each read tokens of their own.

    Raises:
        DataError: No column to read, documents of another kind than configured, or tokenized rows that are too short.
    """
    head = cast("list[dict[str, Any]]", list(itertools.islice(documents.with_format(None), _DOCUMENTS_MEASURED)))
    if not head:
        raise DataError(f"Data set {config.title!r} is empty. Look at its path, split and configuration name.")
    kind, column = kind_and_column(head[0], config)
    check_document(head[0][column], kind, column, config)
    columns = list(head[0])
    if kind == "tokens":
        if pack_texts is not None:
            raise DataError(
                f"Data set {config.title!r} is tokenized already (column {column!r}), but with "
                "token_alignment='character_offsets' each model tokenizes the text itself. Give a data set of text or "
                "chats."
            )
        n_tokens = len(head[0][column])
        if n_tokens < form.context_size:
            raise DataError(
                f"Data set {config.title!r} is tokenized in rows of {n_tokens} tokens, fewer than "
                f"context_size={form.context_size}. Lower context_size or tokenize it anew."
            )
    elif tokenizer is None:
        raise DataError(
            f"Data set {config.title!r} holds {kind}, but the models have no tokenizer. Load models with one or "
            "give a tokenized data set (a column of token ids called 'input_ids')."
        )
    stream = documents if isinstance(documents, IterableDataset) else documents.to_iterable_dataset()
    # Plain rows: over Arrow tables, datasets 3 loses the position when `map` takes fewer documents than a table holds.
    stream = stream.with_format(None)

    def pack(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = batch[column]
        for row in rows:
            check_document(row, kind, column, config)
        if kind == "tokens":
            cut = ([int(token) for token in row[: form.context_size]] for row in rows)
            return labelled([row for row in cut if len(row) == form.context_size])
        texts = _chats_as_texts(rows, config, tokenizer) if kind == "chat" else rows
        rows = _packed(texts, tokenizer, form) if pack_texts is None else pack_texts(texts)
        return labelled(list(rows))

    def labelled(rows: list[list[int]]) -> dict[str, list[Any]]:
        return {"input_ids": rows, "dataset": [config.title] * len(rows)}

    batch_size = _DOCUMENTS_A_BATCH if kind == "tokens" else _documents_a_batch([row[column] for row in head])
    return stream.map(pack, batched=True, batch_size=batch_size, remove_columns=columns)


def _documents_a_batch(head: Sequence[Any]) -> int:
    """How many documents like the first ones are packed at once: about `_CHARACTERS_A_BATCH`, at most 1,000."""
    mean_length = sum(len(str(document)) for document in head) / len(head)
    return max(1, min(_DOCUMENTS_A_BATCH, round(_CHARACTERS_A_BATCH / max(1.0, mean_length))))


def mix(streams: Sequence[IterableDataset], weights: Sequence[float], seed: int) -> IterableDataset:
    """One stream that draws whole sequences by weight; short data sets are repeated until the longest was read once."""
    if len(streams) == 1:
        return streams[0]
    return interleave_datasets(list(streams), probabilities=list(weights), seed=seed, stopping_strategy="all_exhausted")


def pack_token_ids(
    rows: Iterable[Tensor], tokenizer: Any, form: SequenceFormat, coded: Callable[[int], int] = int
) -> Iterator[list[int]]:
    """Rows of token ids as sequences of `context_size`, packed by SAELens's `concat_and_batch_sequences`.

    Args:
        rows: The documents' token ids, or numbers made of them.
        tokenizer: Names the special tokens that packing puts in.
        form: How documents become sequences.
        coded: The number of a token id, if the rows hold other numbers.

    Raises:
        DataError: BOS is wanted, and the tokenizer has none.
    """
    if form.prepend_bos and tokenizer.bos_token_id is None:
        raise DataError("prepend_bos=True, but the tokenizer has no BOS token. Set prepend_bos=False.")
    separator = get_special_token_from_cfg(form.sequence_separator_token, tokenizer)
    sequences = concat_and_batch_sequences(
        tokens_iterator=iter(rows),
        context_size=form.context_size,
        begin_batch_token_id=coded(tokenizer.bos_token_id) if form.prepend_bos else None,
        begin_sequence_token_id=None,
        sequence_separator_token_id=None if separator is None else coded(separator),
        disable_concat_sequences=form.disable_concat_sequences,
    )
    for sequence in sequences:
        yield sequence.tolist()


def _packed(texts: Sequence[str], tokenizer: Any, form: SequenceFormat) -> Iterator[list[int]]:
    if not texts:
        return
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    yield from pack_token_ids((torch.tensor(row, dtype=torch.long) for row in ids), tokenizer, form)


def kind_and_column(row: dict[str, Any], config: DatasetConfig) -> tuple[str, str]:
    """What a data set holds ("text", "tokens" or "chat"), and in which column, from its first row.

    Raises:
        DataError: No column to read.
    """
    wanted = list(_COLUMNS) if config.kind == "auto" else [config.kind]
    if config.chat_template is not None:
        wanted = ["chat"]
    if config.column is not None:
        if config.column not in row:
            raise DataError(
                f"Data set {config.title!r} has no column {config.column!r}. It has {', '.join(map(repr, row))}."
            )
        return (wanted[0] if len(wanted) == 1 else _kind_of(row[config.column], config)), config.column
    for kind in wanted:
        for column in _COLUMNS[kind]:
            if column in row:
                return kind, column
    usual = ", ".join(repr(c) for kind in wanted for c in _COLUMNS[kind])
    raise DataError(
        f"Data set {config.title!r} has none of the usual columns ({usual}). Set column to one of "
        f"{', '.join(map(repr, row))}."
    )


def check_document(value: Any, kind: str, column: str, config: DatasetConfig) -> None:
    """Raises:
    DataError: A document that is not of the data set's kind.
    """
    if value is None:
        raise DataError(f"Data set {config.title!r} has rows whose {column!r} is empty (None). Filter them out.")
    if kind == "tokens":
        fits = _are_token_ids(value)
    else:
        fits = isinstance(value, str) if kind == "text" else isinstance(value, Sequence) and not isinstance(value, str)
    if not fits:
        what = {"tokens": "list of token ids", "text": "text", "chat": "list of messages"}[kind]
        raise DataError(
            f"Data set {config.title!r} holds {kind}, but a row's {column!r} is no {what}: {str(value)[:80]!r}. Set "
            "kind and column, or filter such rows out."
        )


def _are_token_ids(value: Any) -> bool:
    try:
        for token in value:
            operator.index(token)
    except TypeError:
        return False
    return True


def _kind_of(value: Any, config: DatasetConfig) -> str:
    if isinstance(value, str):
        return "text"
    first = next(iter(cast("Sequence[object]", value)), None) if isinstance(value, Sequence) else None
    if isinstance(first, int):
        return "tokens"
    if isinstance(first, Mapping):
        return "chat"
    raise DataError(
        f"Column {config.column!r} of data set {config.title!r} is neither text nor token ids nor a chat: "
        f"{str(value)[:80]!r}. Set kind and column."
    )


def _chats_as_texts(chats: Sequence[Any], config: DatasetConfig, tokenizer: Any) -> list[str]:
    texts: list[str] = []
    for chat in chats:
        for message in chat:
            if not isinstance(message, Mapping) or not {"role", "content"} <= set(cast("Mapping[str, Any]", message)):
                raise DataError(
                    f"Data set {config.title!r} has a chat message without 'role' and 'content': "
                    f"{str(cast(object, message))[:120]!r}. Rename its fields before training."
                )
        try:
            texts.append(render_chat(chat, tokenizer, config.chat_template))
        except DataError as error:
            raise DataError(f"Data set {config.title!r}: {error}") from error
    return texts
