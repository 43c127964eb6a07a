"""The progress bar of everything that reads text: tokens, tokens per second, and the time that is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

# Earlier versions of tqdm have no type parameter when they run.
Bar = tqdm[Any] if TYPE_CHECKING else tqdm


def token_bar(title: str, n_tokens: int, done: int = 0, *, shown: bool = True) -> Bar:
    """A bar that is told how many tokens were read, by `update`.

    Args:
        title: What is done.
        n_tokens: Tokens in all.
        done: Tokens that were read before.
        shown: Whether it is shown at all.
    """
    return tqdm(total=n_tokens, initial=done, desc=title, unit="tok", unit_scale=True, disable=not shown)
