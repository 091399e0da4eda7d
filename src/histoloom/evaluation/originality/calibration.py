"""From scores to alarms: a threshold from held-out real patches, and shares with intervals.

Shape suffixes: N scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

LEVEL = 0.95


@dataclass(frozen=True)
class Share:
    """``count`` of ``n``, with the exact interval of Clopper and Pearson (1934, Biometrika 26, 404)."""

    count: int
    n: int

    @property
    def value(self) -> float:
        """count / n."""
        return self.count / self.n

    @property
    def interval(self) -> list[float]:
        """Low and high, 95 %; images are taken as independent, which patches of one slide are not."""
        found = binomtest(self.count, self.n).proportion_ci(LEVEL, method="exact")
        return [float(found.low), float(found.high)]


def least_images(rate: float) -> int:
    """How many scores a threshold for a false-alarm rate needs."""
    return math.ceil(1 / rate - 1e-9) - 1


def threshold(score_N: np.ndarray, *, rate: float) -> float:
    """What a real patch of another slide exceeds with a probability of at most ``rate``.

    The order statistic of conformal prediction (Vovk et al. 2005): one of n + 1 exchangeable scores is above the r-th
    largest of the others with a probability of at most r / (n + 1). A score above it is an alarm.
    """
    rank = math.floor(rate * (len(score_N) + 1) + 1e-9)
    assert rank >= 1, f"{len(score_N)} scores are too few for a rate of {rate}; least_images says how many"
    return float(np.sort(score_N)[::-1][rank - 1])


def halves(groups_N: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of two parts of about equal size that share no group: for calibration, and to test it.

    The largest groups are shared out first. One group alone is cut in two at its middle.
    """
    names, sizes = np.unique(np.asarray(groups_N, dtype=str), return_counts=True)
    if len(names) < 2:
        middle = len(groups_N) // 2
        return np.arange(middle), np.arange(middle, len(groups_N))
    first: set[str] = set()
    total = [0, 0]
    for place in np.lexsort((names, -sizes)):
        lighter = int(total[1] < total[0])
        total[lighter] += int(sizes[place])
        if lighter == 0:
            first.add(str(names[place]))
    is_first_N = np.array([str(group) in first for group in groups_N])
    return np.flatnonzero(is_first_N), np.flatnonzero(~is_first_N)


@dataclass(frozen=True)
class Auc:
    """The area under the ROC curve of two sets of scores, 0.5: equally high, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: tuple[int, int]


def auc(high_N: np.ndarray, low_N: np.ndarray) -> Auc:
    """The probability that one of the first set scores higher than one of the second; ties count half.

    The interval is DeLong's (1988, Biometrics 44, 837); images are taken as independent.
    """
    over_high, over_low = _below(high_N, low_N), 1 - _below(low_N, high_N)
    value = float(over_high.mean())
    variance = sum(np.var(part, ddof=1) / len(part) for part in (over_high, over_low))
    reach = 1.959964 * math.sqrt(float(variance))
    return Auc(value, max(0.0, value - reach), min(1.0, value + reach), (len(high_N), len(low_N)))


def _below(of_N: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each of the first the share of the others that it exceeds, equal ones counted half."""
    ranked = np.sort(others)
    return (np.searchsorted(ranked, of_N, "left") + np.searchsorted(ranked, of_N, "right")) / (2 * len(ranked))
