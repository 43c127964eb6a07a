from __future__ import annotations

import pytest
from memory import BLOCK, Sample, by_minute, slope, summary


def test_a_megabyte_every_ten_seconds_is_360_an_hour() -> None:
    fitted = slope([10.0 * i for i in range(5 * BLOCK)], [100.0 + i for i in range(5 * BLOCK)])
    assert fitted.value == pytest.approx(360)
    assert fitted.standard_error == pytest.approx(0, abs=1e-9)


def test_a_slope_by_hand() -> None:
    fitted = slope(
        [0, 10, 20], [0.0, 1.0, 3.0], block=1
    )  # hours -h, 0, h about the middle: slope 3 / 2h, residuals 1/6, -1/3, 1/6
    h = 10 / 3600
    assert fitted.value == pytest.approx(1.5 / h)
    assert fitted.standard_error == pytest.approx((1 / 6) ** 0.5 / (2 * h * h) ** 0.5)


def test_the_warm_up_is_left_out_and_both_ends_are_medians() -> None:
    warm_up = [Sample(10.0 * i, 9000.0, 99, 99) for i in range(12)]
    samples = [*warm_up, *(Sample(120 + 10.0 * i, 100.0, 10, 7) for i in range(59)), Sample(710.0, 5000.0, 11, 7)]
    rss, descriptors, threads = summary(samples)
    assert (rss["after_warm_up"], rss["at_the_end"], rss["most"]) == (100.0, 100.0, 5000.0)
    assert (descriptors["least"], descriptors["most"]) == (10, 11)
    assert threads["slope_per_hour"] == pytest.approx(0)


def test_a_minute_has_six_samples() -> None:
    assert by_minute([Sample(10.0 * i, float(i), 0, 0) for i in range(8)]) == [2.5, 6.5]
