from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets as hf_datasets
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from helpers import CONTEXT, SENTENCES, fresh_tokenizer, text_dataset, token_dataset
from sae_lens.tokenization_and_batching import concat_and_batch_sequences

from sae_lens_crosscoder import DatasetConfig
from sae_lens_crosscoder.activations import datasets as datasets_module
from sae_lens_crosscoder.activations.datasets import (
    SequenceFormat,
    load_documents,
    mix,
    mixture_weights,
    packed_sequences,
)
from sae_lens_crosscoder.activations.labelled_sequences import labelled_rows
from sae_lens_crosscoder.errors import ConfigError, DataError, NotFoundError

FORM = SequenceFormat(CONTEXT)
CHATS = [
    [{"role": "user", "content": f"the owl {i}"}, {"role": "assistant", "content": "flies over the old wall"}]
    for i in range(40)
]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def rows(stream: Any) -> list[list[int]]:
    return [row["input_ids"] for row in stream]


def packed(documents: Any, form: SequenceFormat = FORM, tokenizer: Any = None, **config: Any) -> list[list[int]]:
    return rows(packed_sequences(documents, DatasetConfig(**config), tokenizer or fresh_tokenizer(), form))


def packed_by_saelens(texts: list[str], form: SequenceFormat) -> list[list[int]]:
    tokenizer = fresh_tokenizer()
    ids = (torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    separators = {"bos": 0, "eos": 0, None: None}
    sequences = concat_and_batch_sequences(
        ids,
        context_size=form.context_size,
        begin_batch_token_id=0 if form.prepend_bos else None,
        sequence_separator_token_id=separators.get(form.sequence_separator_token, form.sequence_separator_token),  # type: ignore[call-overload]
        disable_concat_sequences=form.disable_concat_sequences,
    )
    return [sequence.tolist() for sequence in sequences]


def cached_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_datasets.config, "HF_DATASETS_CACHE", folder / "cache")


# ----------------------------------------------------------------------------------------- packing


@pytest.mark.parametrize(
    "form",
    [
        FORM,
        SequenceFormat(CONTEXT, prepend_bos=False),
        SequenceFormat(CONTEXT, sequence_separator_token=None),
        SequenceFormat(CONTEXT, sequence_separator_token=7),
        SequenceFormat(10, disable_concat_sequences=True),
    ],
)
def test_documents_are_packed_as_saelens_packs_them(form: SequenceFormat):
    texts = text_dataset(100)["text"]
    expected = packed_by_saelens(list(texts), form)
    assert len(expected) >= 50
    assert packed(text_dataset(100), form) == expected


def test_packing_puts_bos_first_and_a_separator_between_documents():
    form = SequenceFormat(6, prepend_bos=True, sequence_separator_token=9)
    tokenizer = fresh_tokenizer()
    one, two = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in ("ab", "xyz"))
    assert (len(one), len(two)) == (2, 3)
    # BOS a b SEP x y | BOS z SEP a b SEP | ...
    expected = [[0, *one, 9, *two[:2]], [0, two[2], 9, *one, 9]]
    assert packed(Dataset.from_dict({"text": ["ab", "xyz", "ab", "xyz"]}), form)[:2] == expected


def test_a_thousand_documents_are_packed_at_a_time_and_the_rest_of_each_thousand_is_dropped():
    texts = [f"the owl {i}" for i in range(1100)]
    expected = packed_by_saelens(texts[:1000], FORM) + packed_by_saelens(texts[1000:], FORM)
    assert packed(Dataset.from_dict({"text": texts})) == expected


def test_long_documents_are_packed_a_few_at_a_time_so_that_the_first_sequence_need_not_wait(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(datasets_module, "_CHARACTERS_A_BATCH", 4000)
    texts, read = [f"{i:04d}" * 200 for i in range(60)], list[str]()  # 800 characters each: five at a time

    def documents() -> Iterator[dict[str, str]]:
        for text in texts:
            read.append(text)
            yield {"text": text}

    stream = packed_sequences(IterableDataset.from_generator(documents), DatasetConfig(), fresh_tokenizer(), FORM)
    read.clear()  # the first ones were measured
    next(iter(stream))
    assert read == texts[:5]
    in_fives = [row for i in range(0, 60, 5) for row in packed_by_saelens(texts[i : i + 5], FORM)]
    assert rows(stream) == in_fives
    in_memory = packed_sequences(Dataset.from_dict({"text": texts}), DatasetConfig(), fresh_tokenizer(), FORM)
    broken = iter(in_memory)
    head = [next(broken)["input_ids"] for _ in range(300)]
    position = in_memory.state_dict()
    in_memory.load_state_dict(position)
    assert head + rows(in_memory) == in_fives


def test_a_stream_and_a_data_set_in_memory_give_the_same_sequences():
    in_memory = text_dataset(80)
    assert packed(in_memory.to_iterable_dataset(num_shards=1)) == packed(in_memory)
    tokens = token_dataset(20, context=24)
    assert packed(tokens.to_iterable_dataset()) == packed(tokens)


def test_other_columns_and_formats_of_the_data_set_do_not_matter():
    plain = text_dataset(30)
    dressed = plain.add_column("source", ["x"] * 30).add_column("n", list(range(30)))
    assert packed(dressed) == packed(plain)
    tensors = token_dataset(10).with_format("torch")
    assert packed(tensors) == packed(token_dataset(10))
    row = next(iter(packed_sequences(dressed, DatasetConfig(label="words"), fresh_tokenizer(), FORM)))
    assert set(row) == {"input_ids", "dataset"}
    assert row["dataset"] == "words"


def test_tokenized_rows_are_cut_to_the_context_and_shorter_ones_dropped():
    data = Dataset.from_dict({"tokens": [list(range(20)), list(range(100, 116)), [1, 2, 3], list(range(50, 90))]})
    assert packed(data) == [list(range(16)), list(range(100, 116)), list(range(50, 66))]


def test_tokenized_rows_need_no_tokenizer():
    stream = packed_sequences(token_dataset(3), DatasetConfig(), None, FORM)
    assert rows(stream) == token_dataset(3)["input_ids"][:]


def test_a_tokenized_data_set_shorter_than_the_context_is_refused():
    with pytest.raises(DataError, match="'ids' is tokenized in rows of 8 tokens, fewer than context_size=16"):
        packed(token_dataset(5, context=8), label="ids")


# ------------------------------------------------------------------------------------------- chats


def test_a_chat_is_rendered_with_the_tokenizers_template():
    tokenizer = fresh_tokenizer(TEMPLATE)
    texts = [f"user: {chat[0]['content']}\nassistant: {chat[1]['content']}\n" for chat in CHATS]
    assert packed(Dataset.from_dict({"messages": CHATS}), tokenizer=tokenizer) == packed_by_saelens(texts, FORM)


@pytest.mark.parametrize("column", ["messages", "conversation", "conversations"])
def test_a_data_sets_own_jinja_string_wins_over_the_tokenizers_template(column: str):
    template = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    texts = ["".join(f"<{message['content']}>" for message in chat) for chat in CHATS]
    data = Dataset.from_dict({column: CHATS})
    assert packed(data, tokenizer=fresh_tokenizer(TEMPLATE), chat_template=template) == packed_by_saelens(texts, FORM)


def test_a_chat_in_a_named_column_is_known_by_its_values():
    data = Dataset.from_dict({"text": ["not this"] * 40, "dialog": CHATS})
    tokenizer = fresh_tokenizer(TEMPLATE)
    assert packed(data, column="dialog", tokenizer=tokenizer) == packed(
        Dataset.from_dict({"messages": CHATS}), tokenizer=tokenizer
    )


def test_a_chat_without_any_template_is_refused():
    with pytest.raises(DataError, match=r"'data': The tokenizer has no chat template. Set chat_template"):
        packed(Dataset.from_dict({"messages": CHATS}))


def test_a_chat_with_other_field_names_is_refused_with_the_message():
    chats = [[{"from": "human", "value": "hello"}]]
    with pytest.raises(DataError, match=r"without 'role' and 'content': .*'hello'"):
        packed(Dataset.from_dict({"conversations": chats}), chat_template=TEMPLATE)


# --------------------------------------------------------------------------------- kinds and columns


def test_a_named_column_is_read_as_what_it_holds():
    data = Dataset.from_dict({"text": ["not this"] * 60, "body": list(text_dataset(60)["text"])})
    assert packed(data, column="body") == packed(text_dataset(60))
    ids = Dataset.from_dict({"text": ["not this"] * 4, "ids": token_dataset(4)["input_ids"][:]})
    assert packed(ids, column="ids") == token_dataset(4)["input_ids"][:]


def test_a_missing_column_is_named_with_those_there_are():
    with pytest.raises(DataError, match=r"'words' has no column 'body'. It has 'text'"):
        packed(text_dataset(3), column="body", label="words")


def test_a_data_set_without_a_usual_column_says_what_to_set():
    with pytest.raises(DataError, match=r"none of the usual columns .*'text'.* Set column to one of 'story'"):
        packed(Dataset.from_dict({"story": ["once"]}))


def test_the_configured_kind_decides_which_usual_columns_are_looked_for():
    data = Dataset.from_dict({"text": SENTENCES})
    with pytest.raises(DataError, match=r"none of the usual columns \('messages', 'conversation', 'conversations'\)"):
        packed(data, kind="chat")


def test_a_column_of_something_else_is_refused():
    with pytest.raises(DataError, match="'score' of data set 'data' is neither text nor token ids nor a chat"):
        packed(Dataset.from_dict({"score": [[0.5, 0.25]]}), column="score", label="data")


@pytest.mark.parametrize(
    ("documents", "config", "message"),
    [
        ([None, "the owl"], {"column": "c"}, "Column 'c' .* is neither text nor token ids nor a chat: 'None'"),
        ([3, 4], {"column": "c"}, "is neither text nor token ids nor a chat: '3'"),
        ([3, 4], {"column": "c", "kind": "text"}, "holds text, but a row's 'c' is no text: '3'. Set kind and column"),
        ([["a", "b"]], {"column": "c", "kind": "text"}, r"is no text: \"\['a', 'b'\]\""),  # no pair of texts
        (["the owl"], {"column": "c", "kind": "tokens"}, "holds tokens, but a row's 'c' is no list of token ids"),
        ([[1] * 99, None], {"column": "c", "kind": "tokens"}, "rows whose 'c' is empty"),
        ([[1.5] * 99], {"column": "c", "kind": "tokens"}, "is no list of token ids"),
        ([[1, None] * 50], {"column": "c", "kind": "tokens"}, "is no list of token ids"),
        (["the owl"], {"column": "c", "kind": "chat"}, "holds chat, but a row's 'c' is no list of messages: 'the owl'"),
        ([CHATS[0], None], {"column": "c", "kind": "chat", "chat_template": TEMPLATE}, "rows whose 'c' is empty"),
    ],
)
def test_documents_of_another_kind_than_configured_are_refused(
    documents: list[Any], config: dict[str, Any], message: str
):
    data = Dataset.from_dict({"c": documents})
    with pytest.raises(DataError, match=message):
        packed(data, label="d", **config)
    with pytest.raises(DataError, match=message):
        list(labelled_rows(data, DatasetConfig(label="d", **config), fresh_tokenizer(TEMPLATE), FORM))


def test_token_ids_may_be_any_whole_numbers():
    made = IterableDataset.from_generator(lambda: iter([{"input_ids": torch.arange(CONTEXT)}]))
    assert packed(made) == [list(range(CONTEXT))]


def test_text_without_a_tokenizer_is_refused():
    with pytest.raises(DataError, match="'data' holds text, but the models have no tokenizer"):
        packed_sequences(text_dataset(3), DatasetConfig(), None, FORM)


@pytest.mark.parametrize("empty", [Dataset.from_dict({"text": []}), IterableDataset.from_generator(lambda: iter(()))])
def test_an_empty_data_set_is_refused(empty: Any):
    with pytest.raises(DataError, match=r"'words' is empty. Look at its path, split"):
        packed(empty, label="words")


# ----------------------------------------------------------------------------------------- mixtures


def test_shares_of_tokens_follow_the_weights_however_long_documents_are():
    short = Dataset.from_dict({"text": ["owl"] * 4000})
    long = Dataset.from_dict({"text": [" ".join(["fire"] * 500)] * 30})
    tokenizer = fresh_tokenizer()
    owl, fire = (tokenizer(f"{word} {word}")["input_ids"] for word in ("owl", "fire"))
    streams = [packed_sequences(d, DatasetConfig(), tokenizer, FORM) for d in (short, long)]
    mixed = rows(mix(streams, [0.75, 0.25], seed=3).take(800))
    of_fire = sum(fire[-1] in row for row in mixed) / len(mixed)
    assert all((fire[-1] in row) != (owl[-1] in row) for row in mixed), "a sequence mixes two data sets"
    assert of_fire == pytest.approx(0.25, abs=0.05)


def test_a_short_data_set_is_repeated_until_the_longest_was_read_once():
    streams = [packed_sequences(token_dataset(n, seed=n), DatasetConfig(), None, FORM) for n in (60, 5)]
    mixed = {tuple(row) for row in rows(mix(streams, [0.5, 0.5], seed=0))}
    assert {tuple(row) for row in token_dataset(60, seed=60)["input_ids"]} <= mixed


def test_a_single_data_set_is_not_touched_by_the_mixture():
    stream = packed_sequences(token_dataset(5), DatasetConfig(), None, FORM)
    assert mix([stream], [1.0], seed=0) is stream


def labelled(*weights: float | None) -> list[DatasetConfig]:
    return [DatasetConfig(label=f"d{i}", weight=weight) for i, weight in enumerate(weights)]


def test_without_weights_all_data_sets_have_equal_shares():
    assert mixture_weights(labelled(None, None)) == [0.5, 0.5]


def test_given_weights_are_taken_as_they_are():
    assert mixture_weights(labelled(0.2, 0.7, 0.1)) == [0.2, 0.7, 0.1]


def test_weights_that_do_not_add_up_are_refused_with_their_sum():
    with pytest.raises(ConfigError, match=r"add up to 0.9, not 1 \(d0: 0.5, d1: 0.4\).* divide each by 0.9"):
        mixture_weights(labelled(0.5, 0.4))


def test_a_single_weight_that_is_not_one_is_refused():
    with pytest.raises(ConfigError, match=r"add up to 0.5, not 1"):
        mixture_weights(labelled(0.5))


def test_weights_for_some_data_sets_only_are_refused():
    with pytest.raises(ConfigError, match=r"Some data sets have a weight and some have none \(d0: 0.5, d1: None\)"):
        mixture_weights(labelled(0.5, None))


def test_two_data_sets_of_one_name_are_refused():
    with pytest.raises(ConfigError, match=r"Two data sets are called 'pile'. Give each a label"):
        mixture_weights([DatasetConfig(path="a/pile"), DatasetConfig(path="b/pile/")])


@pytest.mark.parametrize("weight", [0.0, -0.5, float("nan")])
def test_a_weight_that_is_no_positive_share_is_refused(weight: float):
    with pytest.raises(ConfigError, match="weights are positive shares"):
        DatasetConfig(label="a", weight=weight)


def test_an_unknown_kind_and_a_template_for_text_are_refused(unchecked_types: None):
    with pytest.raises(ConfigError, match=r"kind 'book' is unknown. Use one of auto, text, tokens, chat"):
        DatasetConfig(kind="book")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"is 'text' but has a chat_template. Set kind='chat'"):
        DatasetConfig(kind="text", chat_template=TEMPLATE)


def test_a_misspelt_field_is_named_with_the_one_that_was_meant():
    with pytest.raises(ConfigError, match=r"no field 'wieght'. Did you mean 'weight'\?"):
        DatasetConfig.from_dict({"path": "a", "wieght": 1.0})
    assert DatasetConfig.from_dict({"path": "a/b", "weight": 1.0}).title == "b"


# ----------------------------------------------------------------------------------------- opening


def test_a_folder_of_save_to_disk_is_opened(tmp_path: Path):
    text_dataset(30).save_to_disk(tmp_path / "saved")
    assert packed(load_documents(DatasetConfig(path=str(tmp_path / "saved")))) == packed(text_dataset(30))


def test_the_split_of_a_saved_dictionary_is_opened(tmp_path: Path):
    DatasetDict({"train": text_dataset(5), "held": text_dataset(30)}).save_to_disk(tmp_path / "saved")
    opened = load_documents(DatasetConfig(path=str(tmp_path / "saved"), split="held"))
    assert packed(opened) == packed(text_dataset(30))


@pytest.mark.parametrize("streaming", [True, False])
def test_files_are_opened_by_their_builder_streamed_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
):
    cached_in(tmp_path, monkeypatch)
    file = tmp_path / "words.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in text_dataset(30)["text"]))
    opened = load_documents(DatasetConfig(path="json", data_files=str(file), streaming=streaming))
    assert isinstance(opened, IterableDataset) is streaming
    assert packed(opened) == packed(text_dataset(30))


def test_a_path_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cached_in(tmp_path, monkeypatch)
    with pytest.raises(NotFoundError, match=r"Data set '.*gone' cannot be opened"):
        load_documents(DatasetConfig(path=str(tmp_path / "gone")))


def test_a_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cached_in(tmp_path, monkeypatch)
    with pytest.raises(NotFoundError, match=r"Data set 'json' cannot be opened: .*gone.jsonl"):
        load_documents(DatasetConfig(path="json", data_files=str(tmp_path / "gone.jsonl")))


def test_a_data_set_without_a_path_is_refused():
    with pytest.raises(ConfigError, match=r"A data set has no path. Set dataset_path"):
        load_documents(DatasetConfig())


def test_a_split_that_a_saved_dictionary_does_not_have_is_refused(tmp_path: Path):
    DatasetDict({"train": text_dataset(5)}).save_to_disk(tmp_path / "saved")
    with pytest.raises((DataError, NotFoundError, ConfigError), match="held"):
        load_documents(DatasetConfig(path=str(tmp_path / "saved"), split="held"))


def test_a_split_that_files_do_not_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cached_in(tmp_path, monkeypatch)
    file = tmp_path / "words.jsonl"
    file.write_text('{"text": "owl"}\n')
    with pytest.raises((DataError, NotFoundError, ConfigError), match="held"):
        load_documents(DatasetConfig(path="json", data_files=str(file), split="held"))
