"""Estimates with intervals: means, shares, areas under the ROC curve, differences of shares, Cohen's kappa.

Legend of shapes: P pairs or images, N answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, norm

Interval = tuple[float, float]

_CHUNK_NUMBERS = 2**22


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    interval: Interval


# --- means and shares


def bootstrap_interval(
    values_P: np.ndarray, *, rng: np.random.Generator, resamples: int = 1000, level: float = 0.95
) -> Interval:
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


def wilson_interval(count: float, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval (1927) of the share ``count`` of ``n``; open also at 0 and 1.

    ``count`` may be a sum of numbers in 0..1, such as of answers that are half right: these vary less than zeros and
    ones do, so that the interval is then wider than needed.
    """
    z2, share = float(norm.isf((1 - level) / 2)) ** 2, count / n
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * share * (1 - share) / n + z2**2 / (4 * n**2)) / (1 + z2 / n)
    return 0.0 if count == 0 else middle - half, 1.0 if count == n else middle + half


def share_estimate(holds_N: np.ndarray) -> Estimate:
    """The mean of bools, or of numbers in 0..1, with Wilson's interval."""
    return Estimate(float(holds_N.mean()), wilson_interval(float(holds_N.sum()), len(holds_N)))


# --- answers of readers


def area_interval(value: float, *, positives: int, negatives: int, level: float = 0.95) -> Interval:
    """The interval of an area under the ROC curve: the areas that are no further off than z standard errors of theirs.

    Newcombe (2006), Statistics in Medicine 25, 559, method 5, on the variance of Hanley & McNeil (1982). Of a
    perfect area too it has a width; DeLong's and the bootstrap's have none there and cover too rarely near it.
    """
    z = float(norm.isf((1 - level) / 2))

    def excess(other: float) -> float:
        size = (positives + negatives) / 2 - 1
        more = 1 + size * (1 - other) / (2 - other) + size * other / (1 + other)
        return abs(value - other) - z * math.sqrt(other * (1 - other) * more / (positives * negatives))

    # At 0 and 1 themselves the standard error is 0, and so is the excess of a perfect area.
    low = 0.0 if value == 0 else brentq(excess, 0.0, min(value, 1 - 1e-9))
    high = 1.0 if value == 1 else brentq(excess, max(value, 1e-9), 1.0)
    return float(low), float(high)


def binomial_p(right: int, wrong: int) -> float | None:
    """The two-sided exact p of as many right among the decided answers by guessing; None where nothing was decided."""
    return float(binomtest(right, right + wrong, 0.5).pvalue) if right + wrong else None


def detectable_accuracy(n: int, *, power: float = 0.8) -> float | None:
    """The true accuracy above 1/2 that ``n`` trials show to be better than chance, four times of five.

    None where no number of right answers would.
    """
    enough = [count for count in range(n + 1) if wilson_interval(count, n)[0] > 0.5]
    if not enough:
        return None
    return float(brentq(lambda p: binom.sf(enough[0] - 1, n, p) - power, 0.5, 1.0))


def difference_interval(first: tuple[float, int], second: tuple[float, int], *, level: float = 0.95) -> Interval:
    """The interval of the difference of two shares, each with its number: Newcombe (1998), method 10."""
    (p, m), (q, n) = first, second
    (p_low, p_high), (q_low, q_high) = wilson_interval(p * m, m, level=level), wilson_interval(q * n, n, level=level)
    return (
        p - q - math.hypot(p - p_low, q_high - q),
        p - q + math.hypot(p_high - p, q - q_low),
    )


def kappa(truth_N: np.ndarray, answer_N: np.ndarray) -> float | None:
    """Cohen's kappa (1960) of two series of class numbers; None where both are one class throughout."""
    classes = int(max(truth_N.max(), answer_N.max())) + 1
    truth_C, answer_C = (np.bincount(series, minlength=classes) / len(series) for series in (truth_N, answer_N))
    by_chance = float(truth_C @ answer_C)
    return None if by_chance >= 1 else (float(np.mean(truth_N == answer_N)) - by_chance) / (1 - by_chance)


def kappa_interval(
    truth_N: np.ndarray, answer_N: np.ndarray, *, rng: np.random.Generator, resamples: int = 1000
) -> Interval | None:
    """Percentile bootstrap over pictures, 95 %; resamples in which kappa is not defined are left out."""
    size = len(truth_N)
    drawn = (rng.integers(size, size=size) for _ in range(resamples))
    kappas = [value for rows in drawn if (value := kappa(truth_N[rows], answer_N[rows])) is not None]
    if not kappas:
        return None
    low, high = np.quantile(kappas, [0.025, 0.975])
    return float(low), float(high)
