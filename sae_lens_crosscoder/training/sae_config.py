"""The training configuration of an architecture, from the fields of a file or the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sae_lens import TrainingSAEConfig

from sae_lens_crosscoder._saelens import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.fields import checked_fields


def sae_config_class(architecture: str) -> type[TrainingSAEConfig]:
    """The class of an architecture's training configuration.

    Raises:
        ConfigError: An unknown architecture.
    """
    try:
        return get_sae_training_class(architecture)[1]
    except KeyError:
        known = ", ".join(sorted(SAE_TRAINING_CLASS_REGISTRY))
        raise ConfigError(f"Architecture {architecture!r} is not registered. There are {known}.") from None


def sae_config(values: Mapping[str, Any]) -> TrainingSAEConfig:
    """The training configuration of an architecture from its fields.

    Raises:
        ConfigError: An unknown architecture or field.
    """
    name = str(values["architecture"])
    config_class = sae_config_class(name)
    given = {name: value for name, value in values.items() if name != "architecture"}
    if not isinstance(given.get("metadata", {}), Mapping):
        raise ConfigError(f"sae ({name}): metadata = {given['metadata']!r} is no mapping. Leave it out.")
    fields = checked_fields(config_class, given, f"sae ({name})", ConfigError, passed_over=("metadata",))
    return config_class.from_dict({**fields, "architecture": name})
