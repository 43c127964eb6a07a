"""What every token of a chat is: part of the template, of a question or of an answer; and packing that keeps it.

A latent that fires on template tokens alone has learned the format. A packed sequence no longer shows which tokens
those are (it may begin in the middle of an answer), so roles are found in the whole chat and packed with its tokens.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch

from sae_lens_crosscoder.activations.datasets import SequenceFormat, pack_token_ids
from sae_lens_crosscoder.chat_template import render_chat
from sae_lens_crosscoder.errors import DataError


class TokenRole(IntEnum):
    """What a token is part of; every token has one role."""

    TEXT = 0
    """A document that is no chat."""

    TEMPLATE = 1
    """What no author wrote: the template's markers and headers, and the tokens that packing puts between documents."""

    SYSTEM = 2
    """A system (or developer) message."""

    USER = 3
    """A user message."""

    ASSISTANT_START = 4
    """The first tokens of an assistant message, where fine-tuning changes models most (Minder, Dumas et al. 2025)."""

    ASSISTANT = 5
    """The rest of an assistant message."""

    OTHER = 6
    """A message of any other role, such as a tool's."""

    @classmethod
    def names(cls) -> list[str]:
        """The roles in the order of their numbers, in lower case."""
        return [role.name.lower() for role in cls]


@dataclass(frozen=True)
class RoledTokens:
    """Token ids and, for each of them, the number of its `TokenRole`."""

    token_ids: list[int]
    roles: list[int]


_MESSAGE_ROLES = {
    "system": TokenRole.SYSTEM,
    "developer": TokenRole.SYSTEM,
    "user": TokenRole.USER,
    "assistant": TokenRole.ASSISTANT,
    "model": TokenRole.ASSISTANT,
}
# Reasoning models' templates cut messages at these and drop or move the parts, so the parts are followed one by one.
_PART_BORDER = re.compile(r"(</?think>)")
# Characters of Unicode's private use area stand in no text and are kept by every `trim`.
_MARK = re.compile("\ue000([0-9]+)\ue001")


def chat_token_roles(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    chat_template: str | None = None,
    n_start_tokens: int = 10,
) -> RoledTokens:
    """The tokens of a chat as the template renders it, with their roles.

    The template is rendered a second time with marks in place of the messages' text, and what stands between the marks
    is the template. So roles do not depend on how a template marks its messages, which messages it reorders, trims or
    drops, or on a message that repeats a marker's text. A token that holds characters of a message and of the template
    counts as the message's. `<think>` and `</think>` count as template.

    Args:
        messages: Mappings with "role" and "content", a string.
        tokenizer: A fast tokenizer of Hugging Face.
        chat_template: Jinja template; None is the tokenizer's own.
        n_start_tokens: Tokens of every assistant message that are `ASSISTANT_START`.

    Raises:
        DataError: A message whose content is no string or holds half of a surrogate pair, a tokenizer without offsets
            or template, or a template that changes the text of a message other than by trimming it.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            "Token roles need to know which characters a token holds, and this tokenizer cannot tell. Load the fast "
            "version: AutoTokenizer.from_pretrained(..., use_fast=True)."
        )
    for message in messages:
        if not isinstance(message, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DataError(f"A chat message has no 'role' and 'content': {str(message)[:120]!r}. Drop the chat.")
        if not isinstance(message.get("content"), str):
            raise DataError(
                f"A chat message of role {message.get('role')!r} has a content that is no string: "
                f"{str(message.get('content'))[:120]!r}. Join its parts, or drop the chat."
            )

    text = _whole_text(render_chat(messages, tokenizer, chat_template))
    parts, marked = _mark(messages)
    spans = _align(text, render_chat(marked, tokenizer, chat_template), [part for _, part in parts])
    owners: list[int | None] = [None] * len(text)
    for start, stop, part in spans:
        owners[start:stop] = [parts[part][0]] * (stop - start)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    roles: list[int] = []
    n_tokens_of: Counter[int] = Counter()
    for start, stop in encoded["offset_mapping"]:
        owner = next((message for message in owners[start:stop] if message is not None), None)
        if owner is None:
            roles.append(TokenRole.TEMPLATE)
            continue
        role = _MESSAGE_ROLES.get(str(messages[owner]["role"]), TokenRole.OTHER)
        is_start = role is TokenRole.ASSISTANT and n_tokens_of[owner] < n_start_tokens
        roles.append(TokenRole.ASSISTANT_START if is_start else role)
        n_tokens_of[owner] += 1
    return RoledTokens(list(encoded["input_ids"]), [int(role) for role in roles])


def _whole_text(text: str) -> str:
    """The text, if it is one: halves of surrogate pairs, which a broken decoder leaves, are no characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"A text holds half of a surrogate pair, {text[error.start]!r} at character {error.start}, which no "
            "tokenizer reads. Decode the file as UTF-8, or drop it: text.encode('utf-8', 'ignore').decode()."
        ) from None
    return text


def text_token_roles(text: str, tokenizer: Any) -> RoledTokens:
    """The tokens of a document that is no chat: `TEXT`, and `TEMPLATE` for special tokens in it.

    Raises:
        DataError: The text holds half of a surrogate pair.
    """
    token_ids: list[int] = tokenizer(_whole_text(text), add_special_tokens=False, verbose=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    return RoledTokens(token_ids, [int(TokenRole.TEMPLATE if i in special else TokenRole.TEXT) for i in token_ids])


def pack_with_roles(documents: Iterable[RoledTokens], tokenizer: Any, form: SequenceFormat) -> Iterator[RoledTokens]:
    """Sequences of `context_size` tokens with their roles, packed as `packed_sequences` packs for training.

    BOS and separators that packing puts in are `TEMPLATE`.

    Raises:
        DataError: BOS is wanted, and the tokenizer has none.
    """
    # Id and role travel as one number, so both go through one packing and cannot come apart.
    n_roles = len(TokenRole)
    rows = (
        torch.tensor([i * n_roles + role for i, role in zip(d.token_ids, d.roles, strict=True)], dtype=torch.long)
        for d in documents
    )
    packed = pack_token_ids(rows, tokenizer, form, lambda token_id: token_id * n_roles + TokenRole.TEMPLATE)
    for sequence in packed:
        yield RoledTokens([number // n_roles for number in sequence], [number % n_roles for number in sequence])


def _mark(messages: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[int, str]], list[dict[str, Any]]]:
    """The parts of all messages' texts, each with the number of its message, and the messages with marks in place."""
    parts: list[tuple[int, str]] = []
    marked: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        content = ""
        for piece in _PART_BORDER.split(message["content"]):
            # Templates ask whether a text is empty, so what is stays so.
            if not piece.strip() or _PART_BORDER.fullmatch(piece):
                content += piece
                continue
            content += f"\ue000{len(parts)}\ue001"
            parts.append((i, piece))
        marked.append({**message, "content": content})
    return parts, marked


def _align(text: str, marked_text: str, parts: Sequence[str]) -> list[tuple[int, int, int]]:
    """Where in the rendered text each part stands, trimmed or not: (start, stop, part)."""
    first, *rest = _MARK.split(marked_text)
    # Every place that can be reached with the parts so far, and how. Mostly one; two if a part's own white space could
    # also be the template's.
    reached: dict[int, tuple[tuple[int, int, int], ...]] = {len(first): ()} if text.startswith(first) else {}
    for number, after in zip(rest[::2], rest[1::2], strict=True):
        part = parts[int(number)]
        following: dict[int, tuple[tuple[int, int, int], ...]] = {}
        for start, spans in reached.items():
            for form in dict.fromkeys((part, part.strip(), part.lstrip(), part.rstrip())):
                stop = start + len(form)
                if text.startswith(form, start) and text.startswith(after, stop):
                    following.setdefault(stop + len(after), (*spans, (start, stop, int(number))))
        reached = following
    if len(text) not in reached:
        raise DataError(
            "The chat template changes the text of a message other than by trimming it, so that the message cannot be "
            f"found in the rendered chat: {text[:200]!r}. Pass a chat_template that keeps the messages as they are."
        )
    return list(reached[len(text)])
