"""Signs that a run trains badly though it gives numbers: dead latents, spikes of the loss, sources that stand still."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

from sae_lens_crosscoder._saelens import TrainStepOutput
from sae_lens_crosscoder.sources import Sources

logger = logging.getLogger(__name__)

DEAD_SHARE = 0.7
"""Share of dead latents from which it is warned of: published crosscoders that are of use have up to 43 %."""
SPIKE_FACTOR = 5.0
"""How many times the usual loss a loss is that is warned of."""
_N_USUAL = 20  # readings whose median is the usual loss
_N_STALLED, _STEPS_STALLED = 20, 200  # readings in a row without any explained variance, and steps they go over
_BEGINNING = 0.25  # share of the run in which nothing explained is nothing unusual
_EXPLAINED = "metrics/explained_variance/"


def explained_by_source(output: TrainStepOutput, sources: Sources) -> dict[str, float]:
    """The columns of the curve with each source's explained variance, 1 - |x - x_hat|^2 / |x - mean(x)|^2 summed over
    a batch; none where the activations are not side by side.
    """
    if len(sources.widths) != len(sources):
        return {}
    row: dict[str, float] = {}
    for label in sources.labels:
        columns = sources.columns(label)
        x, x_hat = output.sae_in[:, columns].float(), output.sae_out[:, columns].float()
        explained = 1 - (x - x_hat).pow(2).sum() / (x - x.mean(dim=0)).pow(2).sum()
        row[f"{_EXPLAINED}{label}"] = explained.item()
    return row


class HealthWatch:
    """Looks at the rows of the training curve and warns once of each sign, with numbers and what to do.

    It reads what has been computed for the curve anyway, so it never makes a step wait for the device.

    Args:
        d_sae: Latents of the dictionary.
        n_steps: Steps of the whole run.
        dead_after_steps: Steps of silence after which a latent counts as dead.
    """

    def __init__(self, d_sae: int, n_steps: int, dead_after_steps: float) -> None:
        self._d_sae, self._n_steps, self._dead_after_steps = d_sae, n_steps, dead_after_steps
        self._losses: deque[float] = deque(maxlen=_N_USUAL)
        self._stalled: dict[str, list[int]] = {}
        self._told: set[str] = set()

    def look(self, step: int, row: Mapping[str, Any]) -> None:
        """Look at the row of a step."""
        self._look_at_latents(step, row["sparsity/dead_features"])
        self._look_at_loss(step, row["losses/overall_loss"])
        if step > _BEGINNING * self._n_steps:
            for name, value in row.items():
                if name.startswith(_EXPLAINED):
                    self._look_at_source(step, name.removeprefix(_EXPLAINED), value)

    def _look_at_latents(self, step: int, n_dead: float) -> None:
        if n_dead > DEAD_SHARE * self._d_sae:
            self._tell_once(
                "dead latents",
                f"{n_dead:,.0f} of {self._d_sae:,} latents ({n_dead / self._d_sae:.0%}) are dead at step {step}: they "
                f"have not fired for {self._dead_after_steps:,.0f} steps, so most of the dictionary learns nothing. "
                "Lower lr or the sparsity penalty, raise lr_warm_up_steps or k, or train fewer latents (d_sae).",
            )

    def _look_at_loss(self, step: int, loss: float) -> None:
        usual = median(self._losses) if len(self._losses) == _N_USUAL else math.inf
        if loss > SPIKE_FACTOR * usual > 0:
            self._tell_once(
                "loss",
                f"The loss at step {step} is {loss:.4g}, {loss / usual:.1f} times the median of {_N_USUAL} readings "
                f"before it ({usual:.4g}). If it does not come down again, lower lr, or drop extreme activations "
                "(max_activation_norm_multiple), and go on from a checkpoint before this step.",
            )
        self._losses.append(loss)

    def _look_at_source(self, step: int, label: str, explained: float) -> None:
        # NaN, where neither activations nor reconstructions vary, explains nothing either.
        steps = self._stalled.setdefault(label, [])
        if explained > 0:
            steps.clear()
            return
        steps.append(step)
        if len(steps) >= _N_STALLED and step - steps[0] >= _STEPS_STALLED:
            # No variance at all up to rounding gives NaN, or an error that is many times the variance.
            is_constant = not math.isfinite(explained) or explained < -1e6
            what = "its activations are the same for every token" if is_constant else "it is not learnt"
            self._tell_once(
                f"source {label}",
                f"Of source {label!r} nothing is explained (explained variance {explained:.3g} at step {step}, at most "
                f"0 since step {steps[0]}): {what}. Look at its model and hook_name, and at its activation "
                "scale; a source that stands still makes every latent look exclusive to the others.",
            )

    def _tell_once(self, sign: str, message: str) -> None:
        if sign not in self._told:
            self._told.add(sign)
            logger.warning(message)
