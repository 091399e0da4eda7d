"""Intervals that cover, areas and kappas that agree with references, and what a number of trials can show."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from histoloom.evaluation.statistics import (
    area_interval,
    binomial_p,
    bootstrap_interval,
    detectable_accuracy,
    difference_interval,
    kappa,
    kappa_interval,
    wilson_interval,
)
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


def test_wilson_is_scipys_for_whole_counts() -> None:
    for n in (1, 7, 40):
        for count in range(n + 1):
            found = binomtest(count, n).proportion_ci(0.95, method="wilson")
            assert wilson_interval(count, n) == pytest.approx((found.low, found.high), abs=1e-12)


def test_wilson_of_half_answers_lies_between() -> None:
    lows, highs = zip(*(wilson_interval(count, 20) for count in (12, 12.5, 13)), strict=True)
    assert lows[0] < lows[1] < lows[2]
    assert highs[0] < highs[1] < highs[2]


def test_area_interval_is_newcombes() -> None:
    """The limits are where the standard error of the limit itself, Hanley & McNeil's, reaches the estimate."""
    low, high = area_interval(0.8, positives=20, negatives=20)
    for limit in (low, high):
        size = 19
        more = 1 + size * (1 - limit) / (2 - limit) + size * limit / (1 + limit)
        error = np.sqrt(limit * (1 - limit) * more / 400)
        assert abs(limit - 0.8) == pytest.approx(1.959963985 * error, rel=1e-6)


@pytest.mark.parametrize(("value", "inside"), [(1.0, 1.0), (0.0, 0.0), (0.5, 0.5)])
def test_area_interval_holds_its_value_and_has_a_width(value: float, inside: float) -> None:
    low, high = area_interval(value, positives=10, negatives=10)
    assert 0 <= low <= inside <= high <= 1
    assert 0.1 < high - low < 0.6


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_area_interval_covers(shift: float) -> None:
    rng = np.random.default_rng(int(10 * shift))
    cuts = np.array([-1.0, -0.3, 0.3, 1.0]) + shift / 2
    real, synthetic = (np.diff([0, *norm.cdf(cuts - mean), 1]) for mean in (0.0, shift))
    true = sum(synthetic[i] * (real[:i].sum() + real[i] / 2) for i in range(5))
    covered = 0
    truth = np.repeat([0, 1], 20)
    for _ in range(300):
        scores = np.digitize(rng.normal(0, 1, 40) + shift * truth, cuts)
        low, high = area_interval(float(roc_auc_score(truth, scores)), positives=20, negatives=20)
        covered += low <= true <= high
    assert covered / 300 >= 0.92


def test_what_chance_gives() -> None:
    assert binomial_p(0, 0) is None
    assert binomial_p(10, 10) == pytest.approx(1.0)
    assert binomial_p(15, 5) == pytest.approx(0.04138946533203125)


def test_more_trials_notice_less() -> None:
    shares = [share for n in (20, 40, 100, 400) if (share := detectable_accuracy(n)) is not None]
    assert len(shares) == 4
    assert shares == sorted(shares, reverse=True)
    assert shares[1] == pytest.approx(0.727, abs=0.01)
    assert detectable_accuracy(2) is None


def test_difference_is_newcombes_example() -> None:
    """Newcombe (1998), Statistics in Medicine 17, 873, table II, method 10: 56/70 - 48/80 is 0.0524 to 0.3339."""
    assert difference_interval((56 / 70, 70), (48 / 80, 80)) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_kappa_is_sklearns() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 4, 60)
    answers = np.where(rng.random(60) < 0.6, truth, rng.integers(0, 5, 60))
    value = kappa(truth, answers)
    assert value is not None
    assert value == pytest.approx(cohen_kappa_score(truth, answers), abs=1e-12)
    interval = kappa_interval(truth, answers, rng=numpy_generator(0, "t"))
    assert interval is not None
    assert interval[0] < value < interval[1]
    assert interval == kappa_interval(truth, answers, rng=numpy_generator(0, "t"))


def test_kappa_of_one_class_is_not_defined() -> None:
    same = np.zeros(5, dtype=int)
    assert kappa(same, same) is None
    assert kappa_interval(same, same, rng=numpy_generator(0, "t")) is None
