"""Streams of documents that break, for the tests of data faults."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from datasets import IterableDataset
from datasets.iterable_dataset import ArrowExamplesIterable


class BrokenStream:
    """Documents that are generated, and that break before some of them.

    Args:
        texts: The documents.
        failures: How often the stream breaks before the document with that number, from 0.
        error: What is raised.
    """

    def __init__(self, texts: Sequence[str], failures: dict[int, int], error: Exception | None = None) -> None:
        self.texts = list(texts)
        self.left = dict(failures)
        self.error = error or ConnectionResetError("connection reset")
        self.n_injected = 0

    def dataset(self) -> IterableDataset:
        # Not a generator of `datasets`' own: it would hash this object, and read another one.
        stream = IterableDataset.from_generator(_nothing)
        stream._ex_iterable.generate_examples_fn = self._examples  # type: ignore[attr-defined]
        stream._ex_iterable.kwargs = {}  # type: ignore[attr-defined]
        return stream

    def __deepcopy__(self, memo: dict[int, Any]) -> BrokenStream:
        return self

    def _examples(self) -> Iterator[tuple[int, dict[str, str]]]:
        for number, text in enumerate(self.texts):
            if self.left.get(number, 0) > 0:
                self.left[number] -= 1
                self.n_injected += 1
                raise self.error
            yield number, {"text": text}


def _nothing() -> Iterator[dict[str, str]]:
    yield {"text": ""}


class Faults:
    n_injected = 0


@contextmanager
def broken_files(monkeypatch: pytest.MonkeyPatch, share: float) -> Iterator[Faults]:
    """Inside the block, this share of the tables that `datasets` reads from files is an error at first, and later not.

    Which ones does not depend on the order of reading: `datasets` reads a mixture's streams in threads.
    """
    faults = Faults()
    made = ArrowExamplesIterable.__init__

    def init(self: Any, generate_tables_fn: Any, *arguments: Any, **named: Any) -> None:
        broken: set[str] = set()

        def breaking(**kwargs: Any) -> Iterator[Any]:
            for number, item in enumerate(generate_tables_fn(**kwargs)):
                table = f"{kwargs.get('files')} {number}"
                if table not in broken and random.Random(table).random() < share:
                    broken.add(table)
                    faults.n_injected += 1
                    raise ConnectionError("Server Disconnected")
                yield item

        made(self, breaking, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(ArrowExamplesIterable, "__init__", init)
        yield faults
