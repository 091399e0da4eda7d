"""The bootstrap interval covers the mean as often as it says, and is seeded."""

from __future__ import annotations

import numpy as np
import pytest

from histoloom.evaluation.intervals import bootstrap_interval
from histoloom.seeding import numpy_generator


def test_covers_the_mean_about_95_times_in_100() -> None:
    draws = np.random.default_rng(0).gamma(4.0, size=(400, 60))
    covered = 0
    for number, values in enumerate(draws):
        low, high = bootstrap_interval(values, rng=numpy_generator(0, "t", number), resamples=400)
        covered += low <= 4.0 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_width_is_that_of_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    low, high = bootstrap_interval(values, rng=numpy_generator(0, "t"), resamples=4000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(2000), rel=0.05)
    assert low < values.mean() < high


def test_seeded_and_without_width_for_one_value() -> None:
    values = np.random.default_rng(0).normal(size=50)
    first, again = (bootstrap_interval(values, rng=numpy_generator(3, "t")) for _ in range(2))
    assert first == again
    assert bootstrap_interval(np.array([0.25]), rng=numpy_generator(0, "t")) == (0.25, 0.25)
