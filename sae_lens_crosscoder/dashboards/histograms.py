"""Histograms of sae-dashboard for values of any size."""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.dashboards._sae_dashboard import LogitsHistogramData

_N_TICKS = 3
_STEPS = (1, 2, 5, 10)


def logits_histogram(logits: Float[Tensor, " d_vocab"], n_bins: int) -> Any:
    """sae-dashboard's histogram of the logits.

    It rounds bins to five places and, below 0.3, puts ticks 1e-6 apart, up to 300,000 of them; so it is made of the
    logits over their largest size, and stretched.
    """
    largest = float(logits.abs().max()) or 1.0
    histogram = LogitsHistogramData.from_data(data=logits / largest, n_bins=n_bins, tickmode="5 ticks", title=None)
    histogram.bar_values = [value * largest for value in histogram.bar_values]
    histogram.tick_vals = ticks(histogram.bar_values)
    return histogram


def ticks(values: list[float]) -> list[float]:
    """Zero and the multiples of 1, 2 or 5 times a power of ten within the values, at most three on the longer side."""
    low, high = min([0.0, *values]), max([0.0, *values])
    longest = max(high, -low)
    if longest == 0:
        return [0.0]
    rough = longest / _N_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor for factor in _STEPS if factor * power >= rough * (1 - 1e-9)) * power
    return [float(f"{i * step:.6g}") for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
