"""A data set that is read on at its position when the way to it breaks, and whose damaged shards are named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from datasets.iterable_dataset import StepExamplesIterable, _BaseExamplesIterable  # pyright: ignore[reportPrivateUsage]

from sae_lens_crosscoder.activations.stream_care import StreamCare
from sae_lens_crosscoder.activations.stream_faults import fault_of, is_refusal
from sae_lens_crosscoder.errors import DamagedError, DataError, first_line


def steady(
    documents: Dataset | IterableDataset, title: str, care: StreamCare, part: int = 0, n_parts: int = 1
) -> IterableDataset:
    """The same documents in the same order, as a stream that survives what `care` has patience for, or a part of them.

    Its position is that of the stream it is made of, so checkpoints hold the same with and without it.

    The parts of a stream are whole files where their number can be divided so, and every n-th document elsewhere. They
    are taken here, below everything that is done to the documents: `datasets` by itself would divide what comes out of
    the last step, so that held-out sequences of one part are trained on in another, or, in a mixture, not at all.

    Args:
        documents: One opened data set.
        title: What messages call it.
        care: Shared by all streams of a store.
        part: Which part to read.
        n_parts: How many parts there are.

    Raises:
        DataError: A data set in memory without any document.
    """
    if isinstance(documents, Dataset):
        documents = split_dataset_by_node(documents, part, n_parts) if n_parts > 1 else documents
        if len(documents) == 0:
            raise DataError(f"Data set {title!r} is empty. Look at its path, split and configuration name.")
        documents, n_parts = documents.to_iterable_dataset(), 1
    stream = documents.with_format(None)
    examples = cast(Any, stream)._ex_iterable
    if n_parts > 1 and examples.num_shards % n_parts == 0:
        examples, n_parts = examples.shard_data_sources(n_parts, part, contiguous=False), 1
    examples = SteadyStream(examples, title, care)
    cast(Any, stream)._ex_iterable = examples if n_parts == 1 else StepExamplesIterable(examples, n_parts, part)
    return stream


class SteadyStream(_BaseExamplesIterable):
    """Examples of a data set below everything that is done to them, so that only what failed is read again.

    Before every example the position of the next one is known. Where reading it fails for a moment, the stream is
    opened anew at that position, after waits that double; a shard that cannot be decoded is an error, or is left out.

    Args:
        ex_iterable: The examples as `datasets` reads them; it has the position.
        title: What messages call the data set.
        care: Shared by all streams of a store.
    """

    def __init__(self, ex_iterable: Any, title: str, care: StreamCare) -> None:
        super().__init__()
        self.ex_iterable = ex_iterable
        self._title, self._care = title, care

    def __iter__(self) -> Iterator[Any]:
        return self._read(lambda: iter(self.ex_iterable))

    def _iter_arrow(self) -> Iterator[Any]:
        return self._read(lambda: self.ex_iterable.iter_arrow())

    @property
    def iter_arrow(self) -> Callable[[], Iterator[Any]] | None:
        return self._iter_arrow if self.ex_iterable.iter_arrow else None

    def _read(self, opened: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        position, n_read, n_failed = self.ex_iterable.state_dict(), 0, 0
        examples = opened()
        while True:
            try:
                example = next(examples)
            except StopIteration:
                return
            except Exception as error:
                n_failed += 1
                # Counts of shards and documents are right also in between: in the first document of a shard they say
                # which one it is. Other positions are right only when a document was given.
                now = self.ex_iterable.state_dict()
                position = self._position_after(error, position if _leaf(now) is None else now, n_failed, n_read)
                self._go_to(position)
                examples = opened()
                continue
            position = self.ex_iterable.state_dict()
            n_read, n_failed = n_read + 1, 0
            yield example

    def _position_after(self, error: Exception, position: Any, n_failed: int, n_read: int) -> Any:
        """Where to go on after an error; raises where it is of no use."""
        fault, place = fault_of(error), self._place(position, n_read)
        if fault == "corrupt":
            return self._after_shard(error, position, place)
        if fault == "final":
            if not is_refusal(error):
                raise error
            raise DataError(
                f"Data set {self._title!r} cannot be read at {place}: {first_line(error)} (trying again would not "
                "help). See that it is there and that this login may read it."
            ) from error
        self._care.wait_to_retry(self._title, place, error, n_failed)
        return position

    def _after_shard(self, error: Exception, position: Any, place: str) -> Any:
        shard = f"{self._shard_name(position)} of data set {self._title!r}"
        leaf = _leaf(position)
        if not self._care.patience.skip_bad_shards or leaf is None:
            advice = " or leave its rest out with --skip-bad-shards" if leaf is not None else ""
            raise DamagedError(
                f"{shard[0].upper()}{shard[1:]} cannot be decoded at {place}: {first_line(error)}. Training on what "
                f"comes out of it would be training on noise. Download it again{advice}."
            ) from error
        self._care.skip(shard, first_line(error))
        return {**position, "shard_idx": leaf["shard_idx"] + 1, "shard_example_idx": 0}

    def _go_to(self, position: Any) -> None:
        """Set the position in place: what stands above holds the very mapping that the stream counts in."""
        inner, counted = self.ex_iterable, self.ex_iterable._state_dict
        inner.load_state_dict(position)
        if inner._state_dict is not counted and isinstance(counted, dict):
            counted.clear()
            counted.update(inner._state_dict)
            inner._state_dict = counted

    def _place(self, position: Any, n_read: int) -> str:
        leaf = _leaf(position)
        if leaf is None:
            return f"document {n_read + 1:,} from where this run began to read"
        return f"document {leaf['shard_example_idx'] + 1:,} of {self._shard_name(position)}"

    def _shard_name(self, position: Any) -> str:
        leaf, n_shards = _leaf(position), self.num_shards
        if leaf is None:
            return "a shard"
        number = leaf["shard_idx"]
        name = _file_in(getattr(_shard(self.ex_iterable, n_shards, number), "kwargs", {}))
        return f"shard {number + 1} of {n_shards}" + (f" ({name})" if name else "")

    # What `datasets` asks of examples; the position is that of the examples below.

    def _init_state_dict(self) -> dict[str, Any]:
        self._state_dict = self.ex_iterable._init_state_dict()
        return cast("dict[str, Any]", self._state_dict)

    def load_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        loaded = self.ex_iterable.load_state_dict(state_dict)
        self._state_dict = self.ex_iterable._state_dict
        return loaded

    def state_dict(self) -> dict[str, Any]:
        return self.ex_iterable.state_dict()

    @property
    def is_typed(self) -> bool:
        return self.ex_iterable.is_typed

    @property
    def features(self) -> Any:
        return self.ex_iterable.features

    @property
    def num_shards(self) -> int:
        return self.ex_iterable.num_shards

    def shuffle_data_sources(self, *arguments: Any, **named: Any) -> SteadyStream:
        return self._of(self.ex_iterable.shuffle_data_sources(*arguments, **named))

    def shard_data_sources(self, *arguments: Any, **named: Any) -> SteadyStream:
        return self._of(self.ex_iterable.shard_data_sources(*arguments, **named))

    def reshard_data_sources(self) -> SteadyStream:
        return self._of(self.ex_iterable.reshard_data_sources())

    def _of(self, ex_iterable: Any) -> SteadyStream:
        return SteadyStream(ex_iterable, self._title, self._care)


_LEAF = {"shard_idx", "shard_example_idx"}


def _leaf(position: Any) -> dict[str, int] | None:
    """The part of a position that counts shards and their examples, if there is exactly one."""
    if not isinstance(position, dict):
        return None
    found = cast("dict[str, Any]", position)
    return cast("dict[str, int]", found) if set(found) >= _LEAF else None


def _shard(ex_iterable: Any, n_shards: int, number: int) -> Any:
    """The examples of one shard alone."""
    return ex_iterable.shard_data_sources(n_shards, number) if number < n_shards else None


def _file_in(value: Any) -> str | None:
    """The first name of a file in what a shard is generated from."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        values = cast("dict[str, Any]", value)
        # What a user named, before where it was unpacked to.
        ordered = sorted(values, key=lambda name: (name != "original_files", name != "base_files", name != "files"))
        return next((name for key in ordered if (name := _file_in(values[key]))), None)
    # datasets 3 lists the files of a shard by an iterable of its own.
    if isinstance(value, (list, tuple)) or type(value).__name__ == "FilesIterable":
        return next((name for item in cast("list[Any]", value) if (name := _file_in(item))), None)
    return None
