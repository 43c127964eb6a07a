"""Folders that datasets 4 and transformers 5 wrote, made readable by the earlier versions that sae-dashboard needs.

A crosscoder is often trained with the newest libraries and shown with the earlier ones: models and data sets on disk
have to open in both.
"""

from __future__ import annotations

from typing import Any

import datasets
import transformers


def read_newer_datasets() -> None:
    """Data sets with lists open: datasets 4 calls a list `List`, earlier versions `Sequence`."""
    if hasattr(datasets, "List"):
        return
    from datasets.features import features

    registered: dict[str, Any] = vars(features)["_FEATURE_TYPES"]
    registered.setdefault("List", datasets.Sequence)


def read_newer_tokenizers() -> None:
    """Tokenizers open: transformers 5 calls the class of a tokenizer.json `TokenizersBackend`."""
    known: Any = transformers
    # Where AutoTokenizer looks for a class that no model has as its own.
    if not hasattr(known, "TokenizersBackend"):
        known.TokenizersBackend = transformers.PreTrainedTokenizerFast
