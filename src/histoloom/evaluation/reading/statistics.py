"""Numbers of a reading: the area under the ROC curve with its interval, what a number of trials can show, kappa.

Legend of shapes: N answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, norm
from sklearn.metrics import roc_auc_score

from histoloom.evaluation.intervals import wilson_interval

Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    interval: Interval


def area(synthetic_N: np.ndarray, scores_N: np.ndarray) -> float:
    """The chance that a synthetic picture is given a higher score than a real one, ties counted as half."""
    return float(roc_auc_score(synthetic_N, scores_N))


def area_interval(value: float, *, positives: int, negatives: int, level: float = 0.95) -> Interval:
    """The interval of an area under the ROC curve: the areas that are no further off than z standard errors of theirs.

    Newcombe (2006), Statistics in Medicine 25, 559, method 5, on the variance of Hanley & McNeil (1982). Of a
    perfect area too it has a width; DeLong's and the bootstrap's have none there and cover too rarely near it.
    """
    z = float(norm.isf((1 - level) / 2))

    def excess(other: float) -> float:
        return abs(value - other) - z * math.sqrt(_area_variance(other, m=positives, n=negatives))

    # At 0 and 1 themselves the standard error is 0, and so is the excess of a perfect area.
    low = 0.0 if value == 0 else brentq(excess, 0.0, min(value, 1 - 1e-9))
    high = 1.0 if value == 1 else brentq(excess, max(value, 1e-9), 1.0)
    return float(low), float(high)


def _area_variance(area: float, *, m: int, n: int) -> float:
    size = (m + n) / 2 - 1
    more = 1 + size * (1 - area) / (2 - area) + size * area / (1 + area)
    return area * (1 - area) * more / (m * n)


def chance_p(right: int, wrong: int) -> float | None:
    """The two-sided exact p of as many right among the decided answers by guessing; None where nothing was decided."""
    return float(binomtest(right, right + wrong, 0.5).pvalue) if right + wrong else None


def noticed_from(n: int, *, power: float = 0.8) -> float | None:
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


def kappa(truth_N: np.ndarray, said_N: np.ndarray) -> float | None:
    """Cohen's kappa (1960) of two series of class numbers; None where both are one class throughout."""
    classes = int(max(truth_N.max(), said_N.max())) + 1
    truth_C, said_C = (np.bincount(series, minlength=classes) / len(series) for series in (truth_N, said_N))
    by_chance = float(truth_C @ said_C)
    return None if by_chance >= 1 else (float(np.mean(truth_N == said_N)) - by_chance) / (1 - by_chance)


def kappa_interval(
    truth_N: np.ndarray, said_N: np.ndarray, *, rng: np.random.Generator, resamples: int = 1000
) -> Interval | None:
    """Percentile bootstrap over pictures, 95 %; resamples in which kappa is not defined are left out."""
    size = len(truth_N)
    drawn = (rng.integers(size, size=size) for _ in range(resamples))
    found = [value for rows in drawn if (value := kappa(truth_N[rows], said_N[rows])) is not None]
    if not found:
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)
