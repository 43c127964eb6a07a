"""How often the text of a run was read, by data set."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, cast

from sae_lens import logger


class Epochs:
    """Counts the sequences that were read of each data set, and tells once when a data set has ended.

    Args:
        titles: The data sets.
        tokens_a_sequence: Tokens of the text in a sequence.
    """

    def __init__(self, titles: Sequence[str], tokens_a_sequence: int) -> None:
        self._tokens_a_sequence = tokens_a_sequence
        self.n_read = dict.fromkeys(titles, 0)
        """Sequences that were read of each data set."""
        self.n_in_first: dict[str, int] = {}
        """How many of them were read when the data set ended for the first time."""

    @property
    def made(self) -> dict[str, float | None]:
        """How many times each data set was read; None for one whose end was not yet seen."""
        return {
            title: round(n / self.n_in_first[title], 4) if self.n_in_first.get(title) else None
            for title, n in self.n_read.items()
        }

    def add(self, title: str, n_sequences: int = 1) -> None:
        """Count sequences that were read."""
        self.n_read[title] = self.n_read.get(title, 0) + n_sequences

    def all_ended(self) -> None:
        """Note that the whole text was read once; the first time it is warned of."""
        if not self._new_ends(list(self.n_read)):
            return
        n_sequences = sum(self.n_read.values())
        warnings.warn(
            f"The data set ended after {n_sequences} sequences ({self._in_tokens(n_sequences)}); epoch 2 begins, and "
            "tokens are seen again, as often as training_tokens asks for. This is said once; metrics.json says how "
            "many epochs were made.",
            stacklevel=4,
        )

    def ended(self, titles: Sequence[str]) -> None:
        """Note that these data sets of a mixture have ended and are read again while others go on."""
        for title in self._new_ends(titles):
            n = self.n_read[title]
            logger.info("Data set %r ended after %d sequences (%s) and is read again.", title, n, self._in_tokens(n))

    def with_others(self, states: Sequence[dict[str, Any]]) -> Epochs:
        """The counts of all data shards together, from what `state_dict` gave of each."""
        whole = Epochs([], self._tokens_a_sequence)
        for title in dict.fromkeys(title for state in states for title in state["n_read"]):
            whole.n_read[title] = sum(state["n_read"].get(title, 0) for state in states)
            ends = [state["n_in_first"].get(title) for state in states]
            if None not in ends:
                whole.n_in_first[title] = sum(ends)
        return whole

    def summary(self) -> dict[str, Any]:
        """What `metrics.json` says; logged as well where a data set has ended."""
        for title, epochs in self.made.items():
            if epochs is not None:
                logger.info("Data set %r was read %.2f times, %s.", title, epochs, self._in_tokens(self.n_read[title]))
        tokens = {title: n * self._tokens_a_sequence for title, n in self.n_read.items()}
        return {"tokens_read": tokens, "epochs": self.made}

    def state_dict(self) -> dict[str, Any]:
        """The counts, as JSON."""
        return {"n_read": dict(self.n_read), "n_in_first": dict(self.n_in_first)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the counts that `state_dict` gave."""
        self.n_read, self.n_in_first = dict(state["n_read"]), dict(state["n_in_first"])

    def _new_ends(self, titles: Sequence[str]) -> list[str]:
        new = [title for title in titles if title not in self.n_in_first]
        self.n_in_first |= {title: self.n_read[title] for title in new}
        return new

    def _in_tokens(self, n_sequences: int) -> str:
        return f"{n_sequences * self._tokens_a_sequence:,} tokens"


def ended_sources(position: Any) -> list[bool]:
    """Which data sets of a mixture have ended at least once, by its position; [] for none."""
    while isinstance(position, dict):
        values = cast("dict[str, Any]", position)
        if "is_exhausted" in values:
            return [bool(is_exhausted) for is_exhausted in values["is_exhausted"]]
        position = values.get("examples_iterable")
    return []
