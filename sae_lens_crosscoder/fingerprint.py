"""One short name for a description and tensors, which changes with either."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor


def fingerprint(described: Mapping[str, Any], tensors: Iterable[Tensor] = ()) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of the description, as JSON, and of the tensors' bytes."""
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
