"""A cache in place of the models: passes of tokens with their activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.disk_cache.reader import CacheReader
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.joint_model import JointModel

LARGEST_ERROR = 0.005
"""Share of their norm by which cached activations may differ from what float32 models give: 0.0017 is bfloat16's
rounding in the cache, the rest is for kernels of other machines."""

LARGEST_ERROR_OF_ROUNDED_MODELS = 0.03
"""The same for models that compute in bfloat16 or float16, whose kernels differ by 0.01 over 4 to 24 layers."""


class CachedPasses:
    """What forward passes of the models would give, from a cache.

    The first sequence that is read goes through the models as well: names say nothing of their weights.

    Args:
        reader: The cache.
        model: The joint model it was made of.
        harvest: Runs the models on tokens.
        is_rounded: Whether it runs them under autocast.
    """

    def __init__(
        self,
        reader: CacheReader,
        model: JointModel,
        harvest: Callable[[Int[Tensor, "batch pos"]], list[Tensor]],
        is_rounded: bool = False,
    ) -> None:
        self._reader, self._model, self._harvest, self._is_rounded = reader, model, harvest, is_rounded
        self._is_checked = False

    def begin_epoch(self, epoch: int) -> None:
        """Begin anew, in an order of the epoch's own."""
        self._reader.begin_epoch(epoch)

    def next_pass(self) -> tuple[Int[Tensor, "batch row"], list[Float[Tensor, "*rows _d_part"]]] | None:
        """The next tokens and their activations, one tensor a part; None at the end of the epoch.

        Raises:
            ConfigError: The models have other weights than those that the cache was made of.
            DataError: A damaged cache, or one whose writers do not go on.
        """
        block = self._reader.next_block()
        if block is None:
            return None
        activations = block.activations
        if self._model.aligner is None:
            activations = activations.unflatten(0, block.tokens.shape)
        parts = list(activations.split(self._model.sources.widths, dim=-1))
        if not self._is_checked:
            self._check(block.tokens[:1], parts)
            self._is_checked = True
        return block.tokens, parts

    def state_dict(self) -> dict[str, Any]:
        """How far the epoch was read, as JSON."""
        return self._reader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was asked, in an epoch that has begun."""
        self._reader.load_state_dict(state)

    def _check(self, tokens: Int[Tensor, "1 pos"], parts: list[Float[Tensor, "*rows _d_part"]]) -> None:
        for label, fresh, cached in zip(self._model.sources.labels, self._harvest(tokens), parts, strict=False):
            now = fresh.reshape(-1, fresh.shape[-1]).cpu().float()
            before = cached.reshape(-1, cached.shape[-1])[: len(now)].float()
            error = ((now - before).norm(dim=-1) / now.norm(dim=-1)).nanmedian().item()
            is_rounded = self._is_rounded or fresh.dtype.itemsize < 4
            largest = LARGEST_ERROR_OF_ROUNDED_MODELS if is_rounded else LARGEST_ERROR
            if not error <= largest:
                raise ConfigError(
                    f"The cache holds other activations than source {label!r} gives now: for the same tokens they "
                    f"differ by {error:.1%} of their norm (rounding gives at most {largest:.1%}). The model has "
                    "other weights than when the cache was made. Load those, or make the cache anew."
                )
