"""What a caller may say about a checkpoint that does not say it itself: sources, activation scales, a threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_lens_crosscoder.errors import ConfigError, ShapeError, SourceError
from sae_lens_crosscoder.sources import Combine, Source, Sources

UNKNOWN = "unknown"
"""Model or hook of a source that a checkpoint does not name."""


@dataclass(frozen=True)
class ReadOptions:
    """What is said about a checkpoint beside its files."""

    sources: Sequence[Source | Mapping[str, Any]] | None = None
    """Fields of the sources (label, model_name, hook_name, ...) in the checkpoint's own order; what a source leaves out
    is taken from the checkpoint, and activation scales always are."""

    scales: Sequence[float] | None = None
    """Factor that each source's activations were multiplied by before the crosscoder, where the file lacks it."""

    threshold: float | None = None
    """Pre-activation above which latents fire, for a BatchTopK that was saved without one."""

    def __post_init__(self) -> None:
        for scale in self.scales or []:
            if not (math.isfinite(scale) and scale > 0):
                raise ConfigError(f"scales={list(self.scales or [])} must be positive numbers, one a source.")
        if self.threshold is not None and not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise ConfigError(f"threshold={self.threshold} must be a number that is not negative.")

    def joined_sources(self, known: Sequence[Mapping[str, Any]], combine: Combine = "concat") -> Sources:
        """The sources, with what the caller says over what the checkpoint says.

        Args:
            known: For every source what the checkpoint says: its `label` and `d_in` at least.
            combine: How they flow together.

        Raises:
            SourceError: Another number of sources than the checkpoint has, or fields that cannot be.
            ShapeError: Another width than that of the weights.
        """
        given = [_fields(source) for source in self.sources or [{}] * len(known)]
        if len(given) != len(known):
            raise SourceError(
                f"The checkpoint has {len(known)} sources ({', '.join(str(k['label']) for k in known)}), but "
                f"{len(given)} were given. Give one for each, in this order."
            )
        joined = list[Source]()
        for own, said in zip(known, given, strict=True):
            if said.get("d_in", own["d_in"]) != own["d_in"]:
                raise ShapeError(f"Source {own['label']!r} is {own['d_in']} wide in the weights, not {said['d_in']}.")
            joined.append(Source.from_dict({"model_name": UNKNOWN, "hook_name": UNKNOWN, **own, **said}))
        return Sources(tuple(joined), combine)

    def required_scales(self, n: int, why: str) -> list[float]:
        """One activation scale a source.

        Raises:
            ConfigError: None were given, or another number of them.
        """
        if self.scales is None:
            raise ConfigError(
                f"{why}, and the file does not hold the factors. Read without them its codes and norms would be wrong. "
                f"Pass scales=[...] with {n} numbers, each sqrt(width) / mean norm of that source's activations as its "
                "authors measured it ([1.0, ...] if raw activations went in)."
            )
        if len(self.scales) != n:
            raise ConfigError(f"{len(self.scales)} scales were given, but the checkpoint has {n} sources.")
        return [float(scale) for scale in self.scales]


def _fields(source: Source | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(source, Source):
        return {name: value for name, value in source.to_dict().items() if name != "activation_scale"}
    if "activation_scale" in source:
        raise ConfigError("activation_scale comes with the checkpoint, or from scales=[...] where it has none.")
    return dict(source)
