"""Loading the models that sources name, with SAELens's loader or TransformerLens 3's bridge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

from sae_lens_crosscoder._saelens import load_model
from sae_lens_crosscoder.errors import MissingDependencyError, NotFoundError, SourceError, first_line
from sae_lens_crosscoder.sources import Source

HookedModel: TypeAlias = Any
"""A HookedTransformer, SAELens's HookedProxyLM or TransformerLens 3's bridge: one interface, but no common class."""


def load_source_model(source: Source, hook_names: list[str], device: str) -> HookedModel:
    """The model that a source names, with at least the given hook points.

    Raises:
        SourceError: A model class that is unknown, or a hook that the model does not have.
        NotFoundError: The model cannot be loaded.
        MissingDependencyError: A model class that this TransformerLens does not have.
    """
    if source.model_class_name == "TransformerBridge":
        try:
            from transformer_lens.model_bridge import TransformerBridge
        except ImportError as error:
            raise MissingDependencyError(
                "model_class_name='TransformerBridge' needs TransformerLens 3: pip install 'transformer-lens>=3,<4'"
            ) from error
        boot = cast("Callable[..., Any]", TransformerBridge.boot_transformers)
        return boot(source.model_name, device=device, **source.model_from_pretrained_kwargs)
    classes = ("HookedTransformer", "HookedMamba", "AutoModelForCausalLM")
    if source.model_class_name not in classes:
        raise SourceError(
            f"Source {source.label!r} has model_class_name={source.model_class_name!r}. Use one of "
            f"{', '.join((*classes, 'TransformerBridge'))}."
        )
    kwargs = dict(source.model_from_pretrained_kwargs)
    if source.model_class_name == "HookedTransformer":
        # What SAELens's runner passes when nothing is said: weights stay as they were trained.
        kwargs.setdefault("center_writing_weights", False)
    restrict = list(dict.fromkeys(hook_names)) if source.model_class_name == "AutoModelForCausalLM" else None
    try:
        return load_model(source.model_class_name, source.model_name, device, kwargs, hook_names=restrict)
    except ValueError as error:
        if "hook_names not found" in str(error):
            raise SourceError(
                f"{source.model_name!r} has no module {source.hook_name!r} to read source {source.label!r} at. Print "
                "dict(model.named_modules()) for the names that it has."
            ) from error
        raise _not_loaded(source, error) from error
    except OSError as error:
        raise _not_loaded(source, error) from error


def _not_loaded(source: Source, error: Exception) -> NotFoundError:
    return NotFoundError(
        f"The model {source.model_name!r} of source {source.label!r} cannot be loaded as {source.model_class_name}: "
        f"{first_line(error)}"
    )
