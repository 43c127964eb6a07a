"""Roles of the tokens of a chat, for templates as models have them, and packing that keeps the roles."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from datasets import Dataset
from helpers import SENTENCES, fresh_tokenizer, tiny_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from sae_lens_crosscoder import DatasetConfig
from sae_lens_crosscoder.activations import (
    RoledTokens,
    SequenceFormat,
    TokenRole,
    chat_token_roles,
    pack_with_roles,
    text_token_roles,
)
from sae_lens_crosscoder.activations.datasets import packed_sequences
from sae_lens_crosscoder.errors import DataError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim }}{{ '<|eot_id|>' }}{% endfor %}"
)
# A system message goes into the first user turn, the assistant is called "model", and roles have to alternate.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + (first if loop.first else '')"
    " + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
)
# The reasoning of all answers but the last is dropped, and that of the last is trimmed and set apart.
REASONING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% if '</think>' in m['content'] %}{% set answer = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m['content'].split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% else %}{% set answer = m['content'] %}{% set thought = '' %}{% endif %}"
    "{% if loop.last %}<think>\n{{ thought.strip('\n') }}\n</think>\n\n{% endif %}{{ answer }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
)
GENERATION = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}A: {% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}Q: {{ m['content'] }}{% endif %}\n{% endfor %}"
)
MARKERS = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>"]

# Messages that repeat what templates write, end in white space, and say the same twice.
CHAT = [
    {"role": "user", "content": "user\nthe owl"},
    {"role": "assistant", "content": "  assistant: the owl flies  \n"},
    {"role": "user", "content": "the owl"},
    {"role": "assistant", "content": "no"},
]
SYSTEM = {"role": "system", "content": "names are bound"}

Run = tuple[str, str]

# By hand: what each template writes (t), and what the system (s), the user (u) and the assistant (a) do.
RUNS: dict[str, tuple[str, list[dict[str, str]], list[Run]]] = {
    "chatml": (
        CHATML,
        [SYSTEM, *CHAT],
        [
            ("t", "<|im_start|>system\n"),
            ("s", "names are bound"),
            ("t", "<|im_end|>\n<|im_start|>user\n"),
            ("u", "user\nthe owl"),
            ("t", "<|im_end|>\n<|im_start|>assistant\n"),
            ("a", "  assistant: the owl flies  \n"),
            ("t", "<|im_end|>\n<|im_start|>user\n"),
            ("u", "the owl"),
            ("t", "<|im_end|>\n<|im_start|>assistant\n"),
            ("a", "no"),
            ("t", "<|im_end|>\n"),
        ],
    ),
    "llama3": (
        LLAMA3,
        CHAT,
        [
            ("t", "<bos><|start_header_id|>user<|end_header_id|>\n\n"),
            ("u", "user\nthe owl"),
            ("t", "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
            ("a", "assistant: the owl flies"),
            ("t", "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"),
            ("u", "the owl"),
            ("t", "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
            ("a", "no"),
            ("t", "<|eot_id|>"),
        ],
    ),
    "gemma": (
        GEMMA,
        [SYSTEM, *CHAT],
        [
            ("t", "<bos><start_of_turn>user\n"),
            ("s", "names are bound"),
            ("t", "\n\n"),
            ("u", "user\nthe owl"),
            ("t", "<end_of_turn>\n<start_of_turn>model\n"),
            ("a", "assistant: the owl flies"),
            ("t", "<end_of_turn>\n<start_of_turn>user\n"),
            ("u", "the owl"),
            ("t", "<end_of_turn>\n<start_of_turn>model\n"),
            ("a", "no"),
            ("t", "<end_of_turn>\n"),
        ],
    ),
    "generation": (
        GENERATION,
        CHAT[2:],
        [("t", "Q:"), ("u", " the owl"), ("t", "A: "), ("a", "no")],
    ),
    "reasoning": (
        REASONING,
        [
            CHAT[2],
            {"role": "assistant", "content": "<think>\nthe fox\n</think>\n\nno"},
            CHAT[2],
            {"role": "assistant", "content": "<think>\nthe wall\n</think>\n\nyes"},
        ],
        [
            ("t", "<|im_start|>user\n"),
            ("u", "the owl"),
            ("t", "<|im_end|>\n<|im_start|>assistant\n"),
            ("a", "no"),
            ("t", "<|im_end|>\n<|im_start|>user\n"),
            ("u", "the owl"),
            ("t", "<|im_end|>\n<|im_start|>assistant\n<think>\n"),
            ("a", "the wall"),
            ("t", "\n</think>\n\n"),
            ("a", "yes"),
            ("t", "<|im_end|>\n"),
        ],
    ),
}
LETTERS = {TokenRole.TEMPLATE: "t", TokenRole.SYSTEM: "s", TokenRole.USER: "u", TokenRole.OTHER: "o"}


def tokenizer_with_markers() -> PreTrainedTokenizerFast:
    """A tokenizer in which the markers are single special tokens, as in chat models; a copy, so it may change."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str()),
        bos_token="<bos>",
        eos_token="<bos>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": MARKERS})
    return tokenizer


def runs(roled: RoledTokens, tokenizer: Any) -> list[Run]:
    """The text of neighbouring tokens of one role."""
    letters = [LETTERS.get(TokenRole(role), "a") for role in roled.roles]
    grouped = itertools.groupby(zip(letters, roled.token_ids, strict=True), key=lambda pair: pair[0])
    return [(letter, tokenizer.decode([i for _, i in pairs])) for letter, pairs in grouped]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("markers_are_tokens", [True, False])
def test_every_message_has_its_tokens_and_the_template_the_rest(name: str, markers_are_tokens: bool):
    tokenizer = tokenizer_with_markers() if markers_are_tokens else fresh_tokenizer()
    template, chat, expected = RUNS[name]
    roled = chat_token_roles(chat, tokenizer, template)
    assert runs(roled, tokenizer) == expected
    text = tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)
    assert roled.token_ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_first_tokens_of_every_answer_have_a_role_of_their_own():
    chat = [CHAT[2], {"role": "assistant", "content": " ".join(SENTENCES)}] * 2
    roled = chat_token_roles(chat, fresh_tokenizer(CHATML))
    for is_answer, group in itertools.groupby(roled.roles, key=lambda role: role >= TokenRole.ASSISTANT_START):
        if is_answer:
            roles = list(group)
            assert roles == [TokenRole.ASSISTANT_START] * 10 + [TokenRole.ASSISTANT] * (len(roles) - 10)
            assert len(roles) > 10
    fewer = chat_token_roles(chat, fresh_tokenizer(CHATML), n_start_tokens=3)
    assert fewer.roles.count(TokenRole.ASSISTANT_START) == 6


def test_messages_of_other_roles_and_empty_ones_are_told_apart():
    chat = [CHAT[2], {"role": "tool", "content": "the fox"}, {"role": "assistant", "content": ""}]
    roled = chat_token_roles(chat, fresh_tokenizer(CHATML))
    assert [run for run in runs(roled, fresh_tokenizer()) if run[0] != "t"] == [("u", "the owl"), ("o", "the fox")]


def test_a_template_that_leaves_empty_messages_out_leaves_them_out():
    template = "{% for m in messages %}{% if m['content'] | trim %}[{{ m['content'] }}]{% endif %}{% endfor %}"
    chat = [{"role": "system", "content": " "}, CHAT[2], {"role": "assistant", "content": ""}]
    tokenizer = fresh_tokenizer(template)
    assert runs(chat_token_roles(chat, tokenizer), tokenizer) == [("t", "["), ("u", "the owl"), ("t", "]")]


# Contents made of what templates are made of.
ONE_SIDED = [CHATML.replace("m['content']", f"m['content'].{side}()") for side in ("lstrip", "rstrip")]
pieces = st.sampled_from(["user", "\n", " ", "<|im_end|>", "<think>", "</think>", "é", "owl", ": "])
contents = st.lists(pieces, max_size=5).map("".join)


@settings(deadline=None, max_examples=60)
@given(st.lists(contents, min_size=1, max_size=4), st.sampled_from([CHATML, LLAMA3, *ONE_SIDED]))
@example([" owl "], ONE_SIDED[0])
@example([" owl "], ONE_SIDED[1])
def test_the_tokens_of_any_message_hold_its_text(drawn: list[str], template: str):
    tokenizer = fresh_tokenizer()
    chat = [{"role": "user", "content": content} for content in drawn]
    roled = chat_token_roles(chat, tokenizer, template)
    of_user = "".join(text for letter, text in runs(roled, tokenizer) if letter == "u")
    parts = (part for message in chat for part in re.split("</?think>", message["content"]))
    assert "".join(of_user.split()) == "".join("".join(parts).split())


def test_documents_that_are_no_chats_are_text_but_for_special_tokens():
    tokenizer = fresh_tokenizer()
    roled = text_token_roles("<bos>" + SENTENCES[0], tokenizer)
    assert roled.roles == [TokenRole.TEMPLATE] + [TokenRole.TEXT] * (len(roled.token_ids) - 1)
    assert tokenizer.decode(roled.token_ids) == "<bos>" + SENTENCES[0]


@pytest.mark.parametrize(
    "form",
    [
        SequenceFormat(50),
        SequenceFormat(50, prepend_bos=False, sequence_separator_token="eos"),
        SequenceFormat(50, disable_concat_sequences=True),
    ],
)
@pytest.mark.parametrize("template", [CHATML, LLAMA3])
def test_packing_with_roles_gives_the_sequences_of_training(form: SequenceFormat, template: str):
    tokenizer = fresh_tokenizer(template)
    chats = [[CHAT[2], {"role": "assistant", "content": SENTENCES[i % 5]}] for i in range(30)]
    roled = [chat_token_roles(chat, tokenizer) for chat in chats]
    packed = list(pack_with_roles(roled, tokenizer, form))
    of_training = packed_sequences(Dataset.from_dict({"messages": chats}), DatasetConfig(), tokenizer, form)
    assert [sequence.token_ids for sequence in packed] == [row["input_ids"] for row in of_training]
    # A role stays with its token, and what packing puts in is template.
    for sequence in packed:
        assert all("<bos>" not in text for letter, text in runs(sequence, tokenizer) if letter != "t")
        assert all("|" not in text for letter, text in runs(sequence, tokenizer) if letter in "ua")
    assert sum(sequence.roles.count(TokenRole.USER) for sequence in packed) > len(packed)


def test_role_names_are_in_the_order_of_their_numbers():
    assert TokenRole.names() == ["text", "template", "system", "user", "assistant_start", "assistant", "other"]
    assert [int(role) for role in TokenRole] == list(range(7))


def test_what_has_no_roles_is_refused():
    with pytest.raises(DataError, match="no chat template"):
        chat_token_roles(CHAT, fresh_tokenizer())
    with pytest.raises(DataError, match="content that is no string"):
        chat_token_roles([{"role": "assistant", "content": None}], fresh_tokenizer(CHATML))
    with pytest.raises(DataError, match="cannot tell"):
        chat_token_roles(CHAT, object(), CHATML)
    shouting = CHATML.replace("m['content']", "m['content'].upper()")
    with pytest.raises(DataError, match="changes the text of a message"):
        chat_token_roles(CHAT, fresh_tokenizer(shouting))
