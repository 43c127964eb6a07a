"""The models that sources name: loaded with SAELens's loader or TransformerLens 3's bridge, and read at hooks."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor

# Where both TransformerLens 2 and 3 have it without a deprecation warning.
from transformer_lens.HookedTransformer import HookedTransformer

from sae_lens_crosscoder._saelens import extract_layer_from_tlens_hook_name, load_model
from sae_lens_crosscoder.errors import MissingDependencyError, NotFoundError, SourceError, first_line
from sae_lens_crosscoder.newer_files import read_newer_tokenizers
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
    read_newer_tokenizers()
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


def check_hook(source: Source, model: HookedModel) -> None:
    """Raises:
    SourceError: The model does not have the source's hook; the message names the nearest.
    """
    known = cast("Mapping[str, Any]", model.hook_dict)
    if source.hook_name not in known:
        near = difflib.get_close_matches(source.hook_name, list(known), n=3)
        hint = f"Did you mean {', '.join(map(repr, near))}?" if near else "See model.hook_dict for its hook points."
        raise SourceError(
            f"{source.model_name!r} has no hook {source.hook_name!r} to read source {source.label!r} at. {hint}"
        )


def capture(model: HookedModel, tokens: Tensor, hook_names: list[str]) -> dict[str, Tensor]:
    """Activations at the hooks, flattened to (batch, position, width); the model stops once it has them all."""
    tokens = tokens.to(input_device(model))
    names = list(dict.fromkeys(hook_names))
    stop = _residual_stop(model, names[0]) if len(names) == 1 and isinstance(model, HookedTransformer) else None
    if stop is not None:
        # The residual stream before a layer is what the model returns when it stops there. TransformerLens fires
        # hook_resid_pre only inside the layer, so reading the hook would run one layer too many.
        return {names[0]: model(tokens, stop_at_layer=stop, return_type=None, prepend_bos=False)}
    layers = [extract_layer_from_tlens_hook_name(name) for name in names]
    stop = None if None in layers else 1 + max(layer for layer in layers if layer is not None)
    _, cache = model.run_with_cache(tokens, names_filter=names, stop_at_layer=stop, prepend_bos=False)
    return {name: cache[name].flatten(2) for name in names}


def _residual_stop(model: HookedTransformer, hook_name: str) -> int | None:
    """The layer to stop at if its input is all that is read and no other hook would change it."""
    parts = hook_name.split(".")
    if len(parts) != 3 or parts[0] != "blocks" or parts[2] != "hook_resid_pre" or model.hook_dict[hook_name].fwd_hooks:
        return None
    return int(parts[1])


def input_device(model: HookedModel) -> torch.device:
    """Where a model wants its tokens: the device of its input embedding."""
    embedding = getattr(model, "W_E", None)
    if isinstance(embedding, Tensor):
        return embedding.device
    return next(model.parameters()).device


def n_token_ids(model: HookedModel) -> int | None:
    """How many token ids a model can read; None for a model that does not say."""
    d_vocab = getattr(getattr(model, "cfg", None), "d_vocab", None)
    if d_vocab is not None:
        return d_vocab
    inner: Any = getattr(model, "model", None)
    embedding = inner.get_input_embeddings() if hasattr(inner, "get_input_embeddings") else None
    return getattr(embedding, "num_embeddings", None)


def _not_loaded(source: Source, error: Exception) -> NotFoundError:
    name = source.model_name
    # A name of the Hub has one slash; anything with more is a path, and from here there is nothing at its end.
    is_lost_path = (name.count("/") > 1 or name.startswith((".", "~"))) and not Path(name).exists()
    lost = f"there is no such folder in {Path.cwd()}, which the path is read from"
    return NotFoundError(
        f"The model {name!r} of source {source.label!r} cannot be loaded as {source.model_class_name}: "
        f"{lost if is_lost_path else first_line(error)}"
    )


def unembedding(model: HookedModel) -> Float[Tensor, "d_model d_vocab"] | None:
    """The matrix that takes the residual stream to logits; None for a model that does not say."""
    weights = getattr(model, "W_U", None)
    if isinstance(weights, Tensor):
        return weights.detach()
    inner: Any = getattr(model, "model", None)
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    return None if head is None else head.weight.detach().T
