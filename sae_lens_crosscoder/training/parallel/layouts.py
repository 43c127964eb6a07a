"""The fields of a run's configuration about several processes, checked."""

from __future__ import annotations

from typing import Literal, get_args

from sae_lens_crosscoder.errors import ConfigError

DictionaryLayout = Literal["replicated", "sharded"]


def check_dictionary_layout(layout: str) -> None:
    """Raises:
    ConfigError: A layout that is unknown.
    """
    if layout not in get_args(DictionaryLayout):
        raise ConfigError(
            f"dictionary_layout={layout!r} is unknown. Use one of {', '.join(get_args(DictionaryLayout))}."
        )


def check_data_shards(n_data_shards: int, batch_size: int, is_cached: bool) -> None:
    """Raises:
    ConfigError: A number of data shards that is not positive or does not divide a batch, or several with a cache.
    """
    if n_data_shards < 1 or batch_size % n_data_shards:
        raise ConfigError(
            f"train_batch_size_tokens={batch_size} cannot be divided among n_data_shards={n_data_shards}: each shard "
            "gives an equal part of every batch. Choose one that divides the other."
        )
    if is_cached and n_data_shards > 1:
        raise ConfigError(
            f"n_data_shards={n_data_shards} with use_cached_activations: a cache is read as one stream. Set "
            "n_data_shards=1, or run the models."
        )


def check_processes(n_processes: int, n_data_shards: int, compiles: bool = False) -> None:
    """Raises:
    ConfigError: More or fewer processes than the data shards can be dealt to, or several with a compiled crosscoder.
    """
    if compiles and n_processes > 1:
        raise ConfigError(
            f"compile_sae=True with {n_processes} processes: a compiled step cannot exchange with the others. Set it "
            "to False."
        )
    if n_data_shards % n_processes:
        raise ConfigError(
            f"{n_processes} processes cannot share n_data_shards={n_data_shards} equally: some would have no data, and "
            "all would wait for the others. Set n_data_shards to a multiple of the number of processes (the result "
            "depends on it, so keep it when the number of processes changes)."
        )
