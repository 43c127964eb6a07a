"""Harvesting activations: data sets, the paired store, its cache on disk, the shuffle buffer, per-source scaling."""

from sae_lens_crosscoder.activations.batches import TrainingBatches
from sae_lens_crosscoder.activations.datasets import DatasetConfig, SequenceFormat
from sae_lens_crosscoder.activations.disk_cache.reader import CacheReader
from sae_lens_crosscoder.activations.disk_cache.writer import CacheRequest, describe_cache, write_cache
from sae_lens_crosscoder.activations.labelled_sequences import LabelledSequences
from sae_lens_crosscoder.activations.scaler import SourceScaler
from sae_lens_crosscoder.activations.shuffle_buffer import ShuffleBuffer
from sae_lens_crosscoder.activations.store import PairedActivationsStore
from sae_lens_crosscoder.activations.store_config import StoreConfig, excluded_token_ids
from sae_lens_crosscoder.activations.token_roles import (
    RoledTokens,
    TokenRole,
    chat_token_roles,
    pack_with_roles,
    text_token_roles,
)

__all__ = [
    "CacheReader",
    "CacheRequest",
    "DatasetConfig",
    "LabelledSequences",
    "PairedActivationsStore",
    "RoledTokens",
    "SequenceFormat",
    "ShuffleBuffer",
    "SourceScaler",
    "StoreConfig",
    "TokenRole",
    "TrainingBatches",
    "chat_token_roles",
    "describe_cache",
    "excluded_token_ids",
    "pack_with_roles",
    "text_token_roles",
    "write_cache",
]
