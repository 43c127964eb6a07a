"""Chats as text, through the Jinja template of a tokenizer or of the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sae_lens_crosscoder.errors import DataError, first_line


def render_chat(chat: Sequence[Mapping[str, Any]], tokenizer: Any, template: str | None = None) -> str:
    """The text of a chat.

    Templates run in transformers' sandbox: they cannot reach Python, but they can be broken.

    Args:
        chat: Messages with `role` and `content`.
        tokenizer: A Hugging Face tokenizer.
        template: Jinja template; None is the tokenizer's own.

    Raises:
        DataError: There is no template, or it cannot be rendered for this chat.
    """
    if template is None and not getattr(tokenizer, "chat_template", None):
        raise DataError("The tokenizer has no chat template. Set chat_template, such as the chat model's own.")
    try:
        return tokenizer.apply_chat_template([dict(m) for m in chat], chat_template=template, tokenize=False)
    except Exception as error:  # a template can raise anything
        raise DataError(
            f"The chat template cannot be rendered: {type(error).__name__}: {first_line(error)} Mend it, or drop chats "
            f"that it does not take, such as this one: {str(chat)[:120]!r}."
        ) from error
