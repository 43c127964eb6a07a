"""Opening the data sets of a run, and looking at their first sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from datasets import Dataset, IterableDataset
from jaxtyping import Int
from torch import Tensor

from sae_lens_crosscoder.activations.datasets import DatasetConfig, load_documents
from sae_lens_crosscoder.activations.store_config import StoreConfig
from sae_lens_crosscoder.activations.stream_care import StreamCare
from sae_lens_crosscoder.errors import ConfigError, DataError

Documents = Dataset | IterableDataset
"""One opened data set: one split, in memory or streamed."""


def open_documents(
    configs: Sequence[DatasetConfig], override: Documents | Mapping[str, Documents] | None, care: StreamCare
) -> tuple[Sequence[DatasetConfig], list[Documents]]:
    """The data sets of a run with what each of them is.

    Args:
        configs: What the configuration says.
        override: Data sets in memory: one, or one for each label; None opens what `configs` names.
        care: How long servers are tried.

    Raises:
        ConfigError: Labels of `override` that are not those of `configs`.
        NotFoundError: There is no such data set.
        DataError: It cannot be opened.
    """
    if override is None:
        return configs, [load_documents(config, care) for config in configs]
    given: Mapping[str, Documents]
    given = {configs[0].title: override} if isinstance(override, Documents) else override
    titles = [config.title for config in configs]
    if len(configs) == 1 and not configs[0].path and not configs[0].label:
        return [DatasetConfig(label=label) for label in given], list(given.values())
    if set(given) != set(titles):
        raise ConfigError(
            f"override_dataset has the data sets {', '.join(map(repr, given))}, but the configuration describes "
            f"{', '.join(map(repr, titles))}. Give one data set for each label."
        )
    return configs, [given[title] for title in titles]


def first_sequences(stream: IterableDataset, title: str, cfg: StoreConfig) -> Int[Tensor, "n_sequences row"]:
    """The held-out sequences and those of one forward pass.

    Raises:
        DataError: There are not that many.
    """
    needed = cfg.n_eval_sequences + cfg.batch_size_prompts
    rows = [row["input_ids"] for row in stream.take(needed)]
    if len(rows) < needed:
        raise DataError(
            f"Data set {title!r} gives {len(rows)} full sequences of {cfg.sequence_format.context_size} tokens, but "
            f"{cfg.n_eval_sequences} are held out for evaluation and {cfg.batch_size_prompts} go through the models at "
            "once. Use more data, or lower context_size, n_eval_batches or store_batch_size_prompts."
        )
    return torch.tensor(rows, dtype=torch.long)
