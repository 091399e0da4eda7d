"""Intervals: of means by bootstrap, of shares by Wilson's score."""

from __future__ import annotations

import numpy as np
from scipy.stats import binomtest

_CHUNK_NUMBERS = 2**22


def bootstrap_interval(
    values_P: np.ndarray, *, rng: np.random.Generator, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """The percentile interval (Efron 1979) of the mean of ``values_P``, resampled ``resamples`` times over pairs.

    Its limits: pairs that share an image are taken as independent, so that the interval says how well the mean over
    these images is known, not how it varies over patients or trainings; and below about 20 pairs a percentile
    interval is too narrow. One value gives an interval of no width.
    """
    assert len(values_P) > 0, "an interval needs values"
    chunk = max(1, _CHUNK_NUMBERS // len(values_P))
    means = [
        values_P[rng.integers(len(values_P), size=(min(chunk, resamples - start), len(values_P)))].mean(axis=1)
        for start in range(0, resamples, chunk)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson_interval(count: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of the share ``count`` of ``n``; open also at 0 and 1."""
    found = binomtest(count, n).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)
