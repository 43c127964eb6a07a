"""What generation is made of: models that read tokens a few at a time and keep their caches of keys and values."""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from typing_extensions import override

from sae_lens_crosscoder.errors import ConfigError, SourceError

HookFunction = Callable[[Tensor, HookPoint], Tensor | None]
"""What a hook point calls: the new activation, or None to leave it."""


class Stepper(ABC):
    """A model with a cache: every call reads further tokens."""

    @abstractmethod
    def __call__(
        self, tokens: Int[Tensor, "batch n_new"], hooks: Sequence[tuple[str, HookFunction]] = ()
    ) -> Float[Tensor, "batch n_new d_vocab"]:
        """Logits of the new tokens, given all that was read before."""


class HookedTransformerStepper(Stepper):
    """A `HookedTransformer` that keeps its cache."""

    def __init__(self, model: Any, batch_size: int) -> None:
        # TransformerLens 3 renamed the class, and its package has the model's class under the module's name.
        hooked_transformer = importlib.import_module("transformer_lens.HookedTransformer")
        names = ("TransformerLensKeyValueCache", "HookedTransformerKeyValueCache")
        cache = next(getattr(hooked_transformer, name) for name in names if hasattr(hooked_transformer, name))
        self._model = model
        self._cache = cache.init_cache(model.cfg, model.cfg.device, batch_size)

    @override
    def __call__(
        self, tokens: Int[Tensor, "batch n_new"], hooks: Sequence[tuple[str, HookFunction]] = ()
    ) -> Float[Tensor, "batch n_new d_vocab"]:
        tokens = tokens.to(self._model.cfg.device)
        return self._model.run_with_hooks(
            tokens,
            return_type="logits",
            prepend_bos=False,
            past_kv_cache=self._cache,
            attention_mask=torch.ones_like(tokens),
            fwd_hooks=list(hooks),
        )


class CausalLMStepper(Stepper):
    """A Hugging Face causal language model, as SAELens hooks it, that keeps its cache."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache: Any = None

    @override
    def __call__(
        self, tokens: Int[Tensor, "batch n_new"], hooks: Sequence[tuple[str, HookFunction]] = ()
    ) -> Float[Tensor, "batch n_new d_vocab"]:
        device = next(self._model.parameters()).device
        with self._model.hooks(fwd_hooks=list(hooks)) if hooks else nullcontext():
            output = self._model.model(tokens.to(device), past_key_values=self._cache, use_cache=True)
        self._cache = output.past_key_values
        return output.logits


def stepper(model: Any, model_class_name: str, batch_size: int) -> Stepper:
    """The stepper of a model.

    Raises:
        SourceError: A kind of model whose cache is not known here.
    """
    if model_class_name == "HookedTransformer":
        return HookedTransformerStepper(model, batch_size)
    if model_class_name == "AutoModelForCausalLM":
        return CausalLMStepper(model)
    raise SourceError(
        f"Generation keeps the cache of HookedTransformer and AutoModelForCausalLM, not of {model_class_name}. "
        "Load the model as one of these."
    )


def check_length(model: Any, label: str, n_tokens: int) -> None:
    """Raises:
    ConfigError: More tokens than the model reads in a sequence, as far as its configuration says.
    """
    config = getattr(getattr(model, "model", None), "config", None) or getattr(model, "cfg", None)
    longest = next((n for name in ("max_position_embeddings", "n_ctx") if (n := getattr(config, name, None))), None)
    if longest is not None and n_tokens > longest:
        raise ConfigError(
            f"{n_tokens} tokens, prompt and new ones together, are more than the {longest} that the model of source "
            f"{label!r} has positions for. Shorten the prompt or generate fewer."
        )


def replacing(patch: Tensor, where: Bool[Tensor, "batch pos"] | None = None) -> HookFunction:
    """A hook that puts a tensor in place of the activation, or in place of its rows at some positions."""

    def replace(activation: Tensor, hook: HookPoint) -> Tensor:
        if where is None:
            return patch.to(activation).reshape(activation.shape)
        replaced = activation.clone()
        replaced[where.to(activation.device)] = patch.to(activation).reshape(-1, *activation.shape[2:])
        return replaced

    return replace


def next_tokens(
    logits: Float[Tensor, "batch d_vocab"], temperature: float, generator: torch.Generator | None
) -> Int[Tensor, " batch"]:
    """The likeliest tokens for temperature 0, else a draw from softmax(logits / temperature).

    Raises:
        ConfigError: A temperature below 0, which would draw the least likely tokens, or one that is no number.
    """
    if not 0 <= temperature < math.inf:
        raise ConfigError(f"temperature={temperature} must be 0 (the likeliest token) or more, and finite.")
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = (logits.float() / temperature).softmax(dim=-1)
    return torch.multinomial(probabilities.cpu(), 1, generator=generator)[:, 0]
