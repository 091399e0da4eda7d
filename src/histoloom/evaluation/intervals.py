"""Intervals: of means by bootstrap, of shares by Wilson's score."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import norm

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


def wilson_interval(count: float, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of the share ``count`` of ``n``; open also at 0 and 1.

    ``count`` may be a sum of numbers in 0..1, such as of answers that are half right: these vary less than zeros and
    ones do, so that the interval is then wider than needed.
    """
    z2, share = float(norm.isf((1 - level) / 2)) ** 2, count / n
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * share * (1 - share) / n + z2**2 / (4 * n**2)) / (1 + z2 / n)
    return 0.0 if count == 0 else middle - half, 1.0 if count == n else middle + half
