"""Tokens and documents may hold anything: control characters, marks of reading direction, halves of pairs."""

from __future__ import annotations

import warnings
from functools import lru_cache
from itertools import islice

import torch
from datasets import Dataset
from fuzz.cases import only_our_errors
from helpers import CONTEXT, fresh_tokenizer, paired_store, tiny_pair, tiny_tokenizer
from hypothesis import example, given
from hypothesis import strategies as st

from sae_lens_crosscoder import JointModel
from sae_lens_crosscoder.activations.token_roles import chat_token_roles, text_token_roles
from sae_lens_crosscoder.diffing.diff_report import Column, Contexts, DiffReport, Evidence, LatentTable
from sae_lens_crosscoder.hub.markdown import plain, table

HOSTILE = st.text(st.characters(categories=["Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Mn"]), max_size=8)
WRITTEN = st.sampled_from(["</script>", "<!--", "]]>", "<bos>", "&lt;", "\\u003c", "\ufeff", "|", "`", "---", "[x](y)"])
TEXTS = st.text(max_size=20) | HOSTILE | WRITTEN


@given(st.lists(TEXTS, min_size=1, max_size=4))
@example(["\ud800"])
@example(["a", "\udfffb"])
def test_chats_of_hostile_text(messages: list[str]) -> None:
    chat = [{"role": ("user", "assistant")[n % 2], "content": message} for n, message in enumerate(messages)]
    template = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    only_our_errors(chat_token_roles, chat, fresh_tokenizer(), template)
    only_our_errors(text_token_roles, "".join(messages), fresh_tokenizer())


@lru_cache
def joint() -> JointModel:
    return tiny_pair(tokenizer=tiny_tokenizer())


def read(rows: dict[str, list[object]]) -> None:
    store = paired_store(joint(), Dataset.from_dict(rows), buffer_tokens=4 * CONTEXT)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The data set ended")
        for _ in islice(store, 2):
            pass


@given(st.lists(TEXTS.map(lambda text: text.encode("utf-8", "ignore").decode()), min_size=1, max_size=8))
def test_documents_of_hostile_text(texts: list[str]) -> None:
    only_our_errors(read, {"text": [text * CONTEXT for text in texts] * CONTEXT})


IDS = st.integers(-2, 310) | st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.lists(IDS, min_size=CONTEXT - 1, max_size=CONTEXT + 1), min_size=4, max_size=6))
@example([[*[0] * 15, 300]] * 4)
@example([[-1] * 16] * 4)
def test_rows_of_token_ids_that_no_model_has(rows: list[list[int]]) -> None:
    only_our_errors(read, {"input_ids": rows * 4})


def page(tokens: list[str], label: str) -> str:
    columns = [Column("class", [label], "class", label, label)]
    ids = torch.arange(len(tokens))[None]
    contexts = Contexts(torch.tensor([0]), ids, torch.ones(1, len(tokens)), [label])
    evidence = Evidence(tokens=dict(enumerate(tokens)), contexts=contexts)
    return DiffReport(LatentTable(columns, ("base", "chat")), evidence=evidence, title=label).to_html()


@given(st.lists(TEXTS, min_size=1, max_size=4), TEXTS)
def test_a_page_of_hostile_tokens_has_the_tags_of_one_of_harmless_tokens(tokens: list[str], label: str) -> None:
    html, harmless = page(tokens, label), page(["a"] * len(tokens), "a")
    for tag in ("<script", "</script", "<!--", "<style", "<meta", "<body"):
        assert html.lower().count(tag) == harmless.lower().count(tag)
    html.encode()


@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_a_table_of_a_model_card_has_its_rows_whatever_stands_in_them(texts: list[str]) -> None:
    cells = table([f"column {i}" for i in range(len(texts))], [texts])
    assert len(cells.strip("\n").split("\n")) == 3
    assert all("\n" not in plain(text) for text in texts)
