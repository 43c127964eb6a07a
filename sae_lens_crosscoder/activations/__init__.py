"""Harvesting activations: data sets, the paired store, the shuffle buffer and per-source scaling."""

from sae_lens_crosscoder.activations.batches import TrainingBatches
from sae_lens_crosscoder.activations.datasets import DatasetConfig, SequenceFormat
from sae_lens_crosscoder.activations.scaler import SourceScaler
from sae_lens_crosscoder.activations.shuffle_buffer import ShuffleBuffer
from sae_lens_crosscoder.activations.store import PairedActivationsStore
from sae_lens_crosscoder.activations.store_config import StoreConfig, excluded_token_ids

__all__ = [
    "DatasetConfig",
    "PairedActivationsStore",
    "SequenceFormat",
    "ShuffleBuffer",
    "SourceScaler",
    "StoreConfig",
    "TrainingBatches",
    "excluded_token_ids",
]
