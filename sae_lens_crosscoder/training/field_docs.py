"""The fields of a training configuration as a text: the docstrings of the classes that read them."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

from sae_lens import LoggingConfig
from simple_parsing.docstring import get_attribute_docstring

from sae_lens_crosscoder._saelens import SAE_TRAINING_CLASS_REGISTRY
from sae_lens_crosscoder.activations import DatasetConfig
from sae_lens_crosscoder.sources import Source
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.sae_config import sae_config_class

_GROUPS = ("--sae", "--logger", "--sae.metadata")


def describe_fields(architecture: str) -> str:
    """All flags of `train` with their defaults and meaning.

    Raises:
        ConfigError: An unknown architecture.
    """
    sae_class = sae_config_class(architecture)
    sections = [
        ("Run", "--", CrosscoderRunnerConfig, {"sae", "logger"}),
        (f"Crosscoder ({architecture})", "--sae.", sae_class, {"metadata"}),
        ("Logger", "--logger.", LoggingConfig, set[str]()),
        ("Each entry of --sources, or fields of --source", "", Source, set[str]()),
        ("Each entry of --datasets, or fields of --dataset", "", DatasetConfig, set[str]()),
    ]
    return "\n\n".join(f"{title}\n{_section(prefix, cls, hidden)}" for title, prefix, cls, hidden in sections)


def field_flags() -> dict[str, str]:
    """Every flag of `train` that is a field, of whatever architecture, with the first sentence of its meaning."""
    classes = [("--", CrosscoderRunnerConfig), ("--logger.", LoggingConfig)]
    classes += [("--sae.", config) for _, config in SAE_TRAINING_CLASS_REGISTRY.values()]
    return {
        f"{prefix}{field.name}": _description(cls, field.name).partition(". ")[0]
        for prefix, cls in classes
        for field in dataclasses.fields(cls)
        if prefix + field.name not in _GROUPS
    }


def _section(prefix: str, cls: type[Any], hidden: set[str]) -> str:
    lines: list[str] = []
    for field in dataclasses.fields(cls):
        if field.name in hidden:
            continue
        default = _default(field.default, field.default_factory)
        lines.append(f"  {prefix}{field.name}{default}")
        text = _description(cls, field.name)
        if text:
            lines.append(f"      {text}")
    return "\n".join(lines)


def _default(value: Any, factory: Any) -> str:
    if value is not dataclasses.MISSING:
        return f" = {value!r}"
    if factory is not dataclasses.MISSING:
        return f" = {factory()!r}"
    return " (required)"


def _description(cls: type[Any], name: str) -> str:
    """The docstring below the field, or its entry under "Args:" of a class that it is inherited from."""
    below = get_attribute_docstring(cls, name).docstring_below
    if below:
        return " ".join(below.split())
    for base in cls.__mro__:
        # SAELens documents its fields as "name (type): meaning" in the class docstring.
        match = re.search(rf"^\s*{name} \([^\n]*?\): (.*)$", inspect.getdoc(base) or "", re.MULTILINE)
        if match:
            return match[1].strip()
    return ""
