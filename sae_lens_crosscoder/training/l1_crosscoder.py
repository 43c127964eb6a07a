"""What the crosscoders with an L1 penalty share: its weight and its warm-up."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from typing_extensions import override

from sae_lens_crosscoder._saelens import TrainCoefficientConfig
from sae_lens_crosscoder.errors import ConfigError
from sae_lens_crosscoder.training.penalised_crosscoder import (
    PenalisedTrainingCrosscoder,
    PenalisedTrainingCrosscoderConfig,
)


@dataclass(kw_only=True)
class L1TrainingCrosscoderConfig(PenalisedTrainingCrosscoderConfig, ABC):
    """Configuration of crosscoders with an L1 penalty.

    Raises:
        ConfigError: A negative penalty or warm-up.
    """

    schedule_fields: ClassVar[tuple[str, ...]] = ("l1_warm_up_steps",)

    l1_coefficient: float = 2.0
    """Weight of the sparsity penalty, lambda of Kissane et al.: larger means fewer active latents."""

    l1_warm_up_steps: int | None = None
    """Steps over which the penalty rises from 0; None is 5 % of the run (0 outside a run)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.l1_coefficient < 0 or (self.l1_warm_up_steps or 0) < 0:
            raise ConfigError(
                f"l1_coefficient={self.l1_coefficient} and l1_warm_up_steps={self.l1_warm_up_steps} must be 0 or more."
            )

    @override
    def fill_in_schedule(self, n_steps: int) -> None:
        if self.l1_warm_up_steps is None:
            self.l1_warm_up_steps = int(0.05 * n_steps)


T_L1_CONFIG = TypeVar("T_L1_CONFIG", bound=L1TrainingCrosscoderConfig)


class L1TrainingCrosscoder(PenalisedTrainingCrosscoder[T_L1_CONFIG], ABC):
    """Base of the crosscoders with an L1 penalty, whose weight rises linearly over the warm-up."""

    @override
    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        return {"l1": TrainCoefficientConfig(self.cfg.l1_coefficient, self.cfg.l1_warm_up_steps or 0)}
