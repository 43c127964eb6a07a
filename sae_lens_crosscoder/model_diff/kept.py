"""Results of a finished phase, kept on disk for a diff that is stopped in a later one."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from sae_lens_crosscoder.causal import PatchEffect
from sae_lens_crosscoder.errors import DataError, first_line
from sae_lens_crosscoder.files import write_file
from sae_lens_crosscoder.model_diff.experiments import ExactAttribution, Experiments
from sae_lens_crosscoder.model_diff.kl import Divergence, DivergentSequence

T_RESULT = TypeVar("T_RESULT")

_KNOWN: list[Any] = [Divergence, DivergentSequence, ExactAttribution, Experiments, PatchEffect]
"""All that may stand in such a file beside tensors and plain values: nothing else is unpickled."""


def kept(path: Path, compute: Callable[[], T_RESULT]) -> T_RESULT:
    """The result that an earlier call kept in the file, or a new one, which is kept there.

    Raises:
        DataError: The file is damaged.
        SaveError: The file cannot be written.
    """
    if path.is_file():
        try:
            with torch.serialization.safe_globals(_KNOWN):
                return torch.load(path, weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise DataError(f"{path} is damaged ({first_line(error)}). Delete it: its phase begins anew.") from error
    result = compute()
    buffer = io.BytesIO()
    torch.save(result, buffer)
    write_file(path, buffer.getvalue())
    return result
