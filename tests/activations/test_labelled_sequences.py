from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from helpers import CONTEXT, fresh_tokenizer, text_dataset, token_dataset

from sae_lens_crosscoder.activations import DatasetConfig, LabelledSequences, SequenceFormat, TokenRole
from sae_lens_crosscoder.activations.datasets import packed_sequences
from sae_lens_crosscoder.errors import DataError

FORM = SequenceFormat(CONTEXT)
TEMPLATE = "{% for m in messages %}|{{ m['role'] }}|{{ m['content'] }}|end|{% endfor %}"
CHAT = [{"role": "user", "content": "the owl flies"}, {"role": "assistant", "content": "over the old wall"}]


def test_sequences_are_those_of_training_with_data_set_and_roles_of_every_token() -> None:
    tokenizer = fresh_tokenizer(TEMPLATE)
    data = {"web": text_dataset(), "chats": Dataset.from_dict({"messages": [CHAT] * 50})}
    configs = [DatasetConfig(label="web", weight=0.75), DatasetConfig(label="chats", weight=0.25)]
    labelled = LabelledSequences.collect(data, configs, tokenizer, FORM, budget_tokens=CONTEXT * 20)
    assert labelled.datasets.bincount().tolist() == [15, 5]
    assert labelled.datasets[:8].bincount().tolist() == [6, 2]
    for i, config in enumerate(configs):
        rows = labelled.tokens[labelled.datasets == i]
        trained = packed_sequences(data[config.title], config, tokenizer, FORM).take(len(rows))
        assert rows.tolist() == [row["input_ids"] for row in trained]
    web, chats = labelled.roles[labelled.datasets == 0], labelled.roles[labelled.datasets == 1]
    assert (web[:, 0] == TokenRole.TEMPLATE).all()  # BOS
    assert TokenRole.TEXT in web
    assert not (chats == TokenRole.TEXT).any()
    assert {TokenRole.USER, TokenRole.TEMPLATE, TokenRole.ASSISTANT_START} <= set(chats.flatten().tolist())


def test_chats_whose_messages_are_no_mappings_are_left_out_with_one_warning(unchecked_types: None) -> None:
    data = Dataset.from_dict({"messages": [["hello", "there"]] * 3})
    tokenizer = fresh_tokenizer(TEMPLATE)
    with (
        pytest.warns(UserWarning, match="left out: A chat message has no 'role' and 'content': 'hello'") as warned,
        pytest.raises(DataError, match="gives no full sequence"),
    ):
        LabelledSequences.collect({"d": data}, [DatasetConfig(label="d")], tokenizer, FORM, 1000)
    assert len(warned) == 1


def test_tokenized_rows_are_text_and_a_short_data_set_gives_what_it_has() -> None:
    data = token_dataset(3)
    labelled = LabelledSequences.collect({"data": data}, [DatasetConfig(label="data")], None, FORM, 10_000)
    assert torch.equal(labelled.tokens, torch.tensor(data["input_ids"]))
    assert (labelled.roles == TokenRole.TEXT).all()
    assert len(labelled) == 3


def test_what_gives_no_sequence_is_refused() -> None:
    configs = [DatasetConfig(label="data")]
    with pytest.raises(DataError, match="no tokenizer"):
        LabelledSequences.collect({"data": text_dataset()}, configs, None, FORM, 100)
    with pytest.raises(DataError, match="gives no full sequence of 16 tokens"):
        LabelledSequences.collect({"data": token_dataset(3, context=4)}, configs, None, FORM, 100)
    with pytest.raises(DataError, match="is empty"):
        LabelledSequences.collect({"data": Dataset.from_dict({"text": []})}, configs, fresh_tokenizer(), FORM, 100)


def test_chats_whose_roles_cannot_be_told_are_left_out_with_a_warning() -> None:
    broken = [{"role": "user", "content": None}]
    data = {"chats": Dataset.from_dict({"messages": [CHAT] * 20 + [broken] + [CHAT] * 20})}
    configs, tokenizer = [DatasetConfig(label="chats")], fresh_tokenizer(TEMPLATE)
    with pytest.warns(UserWarning, match="Chats of 'chats' are left out"):
        labelled = LabelledSequences.collect(data, configs, tokenizer, FORM, 10_000)
    whole = LabelledSequences.collect(
        {"chats": Dataset.from_dict({"messages": [CHAT] * 40})}, configs, tokenizer, FORM, 10_000
    )
    assert torch.equal(labelled.tokens, whole.tokens)
    with pytest.raises(DataError, match="is empty \\(None\\)"):
        LabelledSequences.collect(
            {"text": Dataset.from_dict({"text": ["a", None]})}, [DatasetConfig(label="text")], tokenizer, FORM, 100
        )
