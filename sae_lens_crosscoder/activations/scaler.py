"""Per-source normalisation: every source is scaled to a mean norm of sqrt(its width)."""

# SAELens's scaler holds one float, this one a factor for each source.
# pyright: reportIncompatibleVariableOverride=false

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from typing_extensions import override

from sae_lens_crosscoder._saelens import ActivationScaler
from sae_lens_crosscoder.errors import ConfigError, DataError
from sae_lens_crosscoder.sources import Sources


class SourceScaler(ActivationScaler):
    """SAELens's activation scaler with one factor a source in place of one for all columns.

    The factor of source s is g_s = sqrt(width_s) / mean over tokens of |x_s| (Kissane et al. 2024, `buffer.py`), so
    that a source with a larger residual stream does not outweigh the others in the loss. It is estimated once, kept in
    checkpoints, and folded into the weights at the end of training.

    Args:
        sources: The sources whose columns are scaled.
    """

    def __init__(self, sources: Sources) -> None:
        super().__init__()
        self.sources = sources
        self.scaling_factor: Float[Tensor, " n_parts"] | None = None
        self._spread: tuple[Tensor, Tensor] | None = None

    def _columns(self, like: Tensor) -> Tensor:
        assert self.scaling_factor is not None
        # Kept: to copy them to a GPU in every step would make the host wait for it.
        if self._spread is None or self._spread[0] is not self.scaling_factor or not _match(self._spread[1], like):
            repeats = torch.tensor(self.sources.widths)
            columns = self.scaling_factor.repeat_interleave(repeats).to(device=like.device, dtype=like.dtype)
            self._spread = self.scaling_factor, columns
        return self._spread[1]

    @override
    def scale(self, acts: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        """Activations in units of each source's mean norm; unchanged before the factors are estimated."""
        return acts if self.scaling_factor is None else acts * self._columns(acts)

    @override
    def unscale(self, acts: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        """The inverse of `scale`."""
        return acts if self.scaling_factor is None else acts / self._columns(acts)

    @override
    @torch.no_grad()
    def estimate_scaling_factor(
        self, d_in: int, data_provider: Iterator[Tensor], n_batches_for_norm_estimate: int = 100
    ) -> None:
        """Estimate every source's factor over the next batches, which training then does not see.

        Raises:
            DataError: A source whose mean norm is zero or not finite.
        """
        sums = torch.zeros(len(self.sources.widths), dtype=torch.float64)
        n_tokens = 0
        for _ in tqdm(
            range(n_batches_for_norm_estimate), desc="Estimating activation norms", unit="batch", leave=False
        ):
            batch = next(data_provider)
            n_tokens += batch.shape[0]
            for i, part in enumerate(batch.split(self.sources.widths, dim=-1)):
                # In float32, so that squares of float16 activations do not overflow.
                norms = part.to(torch.promote_types(part.dtype, torch.float32)).norm(dim=-1)
                sums[i] += norms.sum(dtype=torch.float64).cpu()
        mean_norms = sums / n_tokens
        for label, mean_norm in zip(self.sources.labels, mean_norms.tolist(), strict=False):
            if not (math.isfinite(mean_norm) and mean_norm > 0):
                raise DataError(
                    f"The activations of source {label!r} have mean norm {mean_norm}, so they cannot be scaled to "
                    "sqrt(width). Look at the model and the hook for NaN, infinite or constantly zero activations."
                )
        widths = torch.tensor(self.sources.widths, dtype=torch.float64)
        self.scaling_factor = widths.sqrt() / mean_norms

    @override
    def save(self, file_path: str) -> None:
        """Write the factors by label as JSON, exactly."""
        factors = None if self.scaling_factor is None else self.scaling_factor.tolist()
        Path(file_path).write_text(json.dumps({"labels": self.sources.labels, "scaling_factor": factors}))

    @override
    def load(self, file_path: str | Path) -> None:
        """Read what `save` wrote.

        Raises:
            ConfigError: The file belongs to other sources.
        """
        data: dict[str, Any] = json.loads(Path(file_path).read_text())
        if data.get("labels") != self.sources.labels:
            raise ConfigError(
                f"{file_path} holds the activation scales of sources {data.get('labels')}, but this run has "
                f"{self.sources.labels}. Resume with the sources of the checkpoint."
            )
        factors = data["scaling_factor"]
        self.scaling_factor = None if factors is None else torch.tensor(factors, dtype=torch.float64)


def _match(columns: Tensor, like: Tensor) -> bool:
    return columns.device == like.device and columns.dtype == like.dtype
