"""What a metric of two sets gives: estimates by name, from features alone.

Legend of shapes: N real and M synthetic images, D features. Features are float, any unit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from scipy.stats import t as student

from histoloom.evaluation.intervals import bootstrap_interval, wilson_interval

Better = Literal["smaller", "larger"]
SetFunction = Callable[[np.ndarray, np.ndarray], float]
"""A number of two sets of features, (N, D) and (M, D)."""

SUBSETS = 12
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value and the limits of its interval."""

    value: float
    low: float
    high: float


class SetEstimator(Protocol):
    """Estimates by name of real (N, D) and synthetic (M, D) features; ``rng`` draws what the intervals need."""

    def __call__(
        self, real_ND: np.ndarray, synthetic_MD: np.ndarray, /, *, rng: np.random.Generator
    ) -> Mapping[str, Estimate]: ...


@dataclass(frozen=True)
class SetMetric:
    """A metric: the names of its values, each with what is better, and how they are computed."""

    values: Mapping[str, Better]
    estimate: SetEstimator
    moments: bool = False
    """whether it fits a covariance, which needs more images than the features have effective dimensions"""


def with_interval(
    function: SetFunction,
    real_ND: np.ndarray,
    synthetic_MD: np.ndarray,
    *,
    rng: np.random.Generator,
    subsets: int = SUBSETS,
    most: int | None = None,
) -> Estimate:
    """``function`` of the whole sets; its interval from its spread over random parts of both, drawn without
    replacement.

    Parts are halves, or at most ``most`` images. The spread s over parts of a share q of the images stands for a
    standard error s sqrt(q / (1 - q)) of the whole (Shao & Wu 1989, Annals of Statistics 17(3), 1176: the delete-d
    jackknife); the interval is Student's with subsets - 1 degrees of freedom. It says how well the value over these
    images is known, not how it varies over patients or trainings, and it does not remove a bias that the value has at
    this number of images.
    """
    value = function(real_ND, synthetic_MD)
    share = min(0.5, (most or np.inf) / max(len(real_ND), len(synthetic_MD)))
    values_S = [
        function(_part(real_ND, share=share, rng=rng), _part(synthetic_MD, share=share, rng=rng))
        for _ in range(subsets)
    ]
    error = float(np.std(values_S, ddof=1)) * np.sqrt(share / (1 - share))
    reach = float(student.ppf((1 + LEVEL) / 2, subsets - 1)) * error
    return Estimate(value, value - reach, value + reach)


def mean_interval(values_N: np.ndarray, *, rng: np.random.Generator) -> Estimate:
    """The mean of one number an image, and its bootstrap interval over these images; the other set stays as it is."""
    numbers_N = np.asarray(values_N, np.float64)
    low, high = bootstrap_interval(numbers_N, rng=rng, level=LEVEL)
    return Estimate(float(numbers_N.mean()), low, high)


def share(holds_N: np.ndarray) -> Estimate:
    """The share of images of which something holds (bool), with Wilson's score interval (1927): open also at 0 and 1.

    The other set, which decides what holds, stays as it is.
    """
    low, high = wilson_interval(int(holds_N.sum()), len(holds_N), level=LEVEL)
    return Estimate(float(holds_N.mean()), low, high)


def _part(x_ND: np.ndarray, *, share: float, rng: np.random.Generator) -> np.ndarray:
    return x_ND[np.sort(rng.choice(len(x_ND), size=max(2, int(len(x_ND) * share)), replace=False))]
