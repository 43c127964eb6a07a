"""The Matryoshka BatchTopK crosscoder: nested prefixes of the latents each reconstruct the activations."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from typing_extensions import override

from sae_lens_crosscoder._saelens import TrainStepInput, TrainStepOutput
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.training.batchtopk_crosscoder import (
    BatchTopKTrainingCrosscoder,
    BatchTopKTrainingCrosscoderConfig,
)


@dataclass(kw_only=True)
class MatryoshkaBatchTopKTrainingCrosscoderConfig(BatchTopKTrainingCrosscoderConfig):
    """Configuration of `MatryoshkaBatchTopKTrainingCrosscoder`.

    Raises:
        ConfigError: Widths that do not rise, or reach beyond `d_sae`.
    """

    matryoshka_widths: list[int] = field(default_factory=list[int])
    """Latents of each prefix, rising; `d_sae` itself may be left out. Empty is d_sae / 8, d_sae / 4, d_sae / 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        widths = self.matryoshka_widths or [self.d_sae // 8, self.d_sae // 4, self.d_sae // 2]
        self.matryoshka_widths = [width for width in widths if width != self.d_sae]
        rising = [0, *self.matryoshka_widths, self.d_sae]
        if any(narrow >= wide for narrow, wide in itertools.pairwise(rising)):
            raise ConfigError(f"matryoshka_widths={widths} must be positive and rise to at most d_sae={self.d_sae}.")

    @override
    def check_sources(self) -> None:
        """Raises:
        ConfigError: Also if exclusive latents leave a prefix without latents that write some source.
        """
        super().check_sources()
        for width in self.matryoshka_widths:
            if unwritten := self.layout.unwritten_by_first(width):
                raise ConfigError(
                    f"None of the first {width} latents (matryoshka_widths) may write source {unwritten[0]}, which "
                    f"they are to reconstruct: n_exclusive_latents={self.n_exclusive_latents} stand before the free "
                    "latents. Widen the first prefix, or set n_shared_latents."
                )

    @override
    @classmethod
    def architecture(cls) -> str:
        return "matryoshka_batchtopk_crosscoder"


class MatryoshkaBatchTopKTrainingCrosscoder(BatchTopKTrainingCrosscoder):
    """BatchTopK crosscoder whose prefixes are crosscoders too (Bussmann et al. 2025); saved as `JumpReLUSAE`.

    loss = that of `BatchTopKTrainingCrosscoder` + sum over prefixes m of E_tokens[ |x - f_{<m} W_dec_{<m} - b_dec|^2 ].
    Codes are selected once, over all latents. Latents of the first prefixes become the general ones.
    """

    cfg: MatryoshkaBatchTopKTrainingCrosscoderConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, cfg: MatryoshkaBatchTopKTrainingCrosscoderConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self.prefix_widths = cfg.matryoshka_widths

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One step's loss, with that of every prefix."""
        output = super().training_forward_pass(step_input)
        if output.feature_acts.is_sparse:
            return output  # the sparse step has them
        reconstruction, start = self.b_dec, 0
        for width in self.cfg.matryoshka_widths:
            reconstruction = reconstruction + output.feature_acts[:, start:width] @ self.W_dec[start:width]
            inner = self.mse_loss_fn(reconstruction, step_input.sae_in).sum(dim=-1).mean()
            output.losses[f"inner_mse_loss_{width}"] = inner
            output.loss = output.loss + inner
            start = width
        return output
