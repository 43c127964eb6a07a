"""The check of a device's name."""

from __future__ import annotations

import torch

from sae_lens_crosscoder.errors import ConfigError


def check_device(name: str | None, field: str = "device") -> None:
    """Raises:
    ConfigError: The device is unknown, or a GPU that is not there.
    """
    if name is None or name == "with_model":
        return
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{field}={name!r} is no device. Use 'cpu', 'cuda', 'cuda:1' or 'mps'.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{field}={name!r}, but torch finds no CUDA device. Use 'cpu', or a CUDA build of torch.")
