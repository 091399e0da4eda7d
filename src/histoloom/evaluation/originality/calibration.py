"""From scores to alarms: a threshold from held-out real patches, its test on others, and shares with intervals.

Shape suffixes: N scores, H held-out patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from histoloom.evaluation.results import CopyRates, Membership

LEVEL = 0.95
RATE = 0.01
"""the false-alarm rate that thresholds are set for"""
MARGIN = 2
"""the threshold is set for ``RATE / MARGIN`` where there are patches enough: slides differ"""


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
    def interval(self) -> tuple[float, float]:
        """Low and high, 95 %; images are taken as independent, which patches of one slide are not."""
        interval = binomtest(self.count, self.n).proportion_ci(LEVEL, method="exact")
        return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Calibration:
    """``threshold``: a score above it is an alarm. ``rate``: the false-alarm rate that it was set for.

    ``n``: held-out patches that set it; ``tested``: alarms among held-out patches that did not. ``slides``: how many
    set it, and how many others tested it.
    """

    threshold: float
    rate: float
    n: int
    slides: tuple[int, int]
    tested: Share


def min_scores(rate: float) -> int:
    """How many scores a threshold for a false-alarm rate needs."""
    return math.ceil(1 / rate - 1e-9) - 1


MIN_PER_HALF = min_scores(RATE)
"""held-out patches that set a threshold, and that test it"""


def conformal_threshold(score_N: np.ndarray, *, rate: float) -> float:
    """What a real patch of another slide exceeds with a probability of at most ``rate``.

    The order statistic of conformal prediction (Vovk et al. 2005): one of n + 1 exchangeable scores is above the r-th
    largest of the others with a probability of at most r / (n + 1). A score above it is an alarm.
    """
    rank = math.floor(rate * (len(score_N) + 1) + 1e-9)
    assert rank >= 1, f"{len(score_N)} scores are too few for a rate of {rate}; min_scores says how many"
    return float(np.sort(score_N)[::-1][rank - 1])


def halves(groups_N: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two parts of about equal size that share no group: to set a threshold, and to test it.

    The largest groups are assigned first. One group alone is cut in two at its middle.
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


def can_calibrate(slide_H: Sequence[str]) -> bool:
    """Whether there are held-out patches enough to set a threshold, and to test it; ``slide_H``: the slide of each."""
    return min(len(part) for part in halves(slide_H)) >= MIN_PER_HALF


def calibrate(slide_H: Sequence[str], score_H: np.ndarray) -> Calibration | None:
    """A threshold from the scores of one half of the held-out slides, tested on the other; None for too few patches."""
    if not can_calibrate(slide_H):
        return None
    first, second = halves(slide_H)
    rate = RATE / MARGIN if len(first) >= min_scores(RATE / MARGIN) else RATE
    threshold = conformal_threshold(score_H[first], rate=rate)
    tested = Share(int((score_H[second] > threshold).sum()), len(second))
    first_slides, second_slides = ({slide_H[row] for row in part} for part in (first, second))
    return Calibration(threshold, rate, len(first), (len(first_slides), len(second_slides - first_slides)), tested)


def membership(member_N: np.ndarray, other_N: np.ndarray) -> Membership:
    """The probability that a training patch scores higher than a held-out one (the area under the ROC curve).

    Ties count half. The interval is DeLong's (1988, Biometrics 44, 837); images are taken as independent.
    """
    over_other, over_member = _share_below(member_N, other_N), 1 - _share_below(other_N, member_N)
    value = float(over_other.mean())
    variance = sum(np.var(part, ddof=1) / len(part) for part in (over_other, over_member))
    half_width = 1.959964 * math.sqrt(float(variance))
    interval = (max(0.0, value - half_width), min(1.0, value + half_width))
    return Membership(auc=value, interval=interval, n=(len(member_N), len(other_N)))


def copy_rates(copies: Share, calibration: Calibration | None) -> CopyRates:
    """Alarms among the samples and among the held-out patches that test the threshold."""
    if calibration is None:
        return CopyRates()
    return CopyRates(
        copies=copies.count,
        copy_rate=copies.value,
        interval=copies.interval,
        false_alarm_rate=calibration.tested.value,
        false_alarm_interval=calibration.tested.interval,
        threshold=calibration.threshold,
    )


def _share_below(score_N: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each score the share of the others that it exceeds, equal ones counted half."""
    ranked = np.sort(others)
    return (np.searchsorted(ranked, score_N, "left") + np.searchsorted(ranked, score_N, "right")) / (2 * len(ranked))
