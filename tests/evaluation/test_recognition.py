"""Confusion, recall and balanced accuracy."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import recall_score

from histoloom.evaluation.faithfulness import recognition


def test_agrees_with_scikit_learn_and_says_which_cluster_has_no_image() -> None:
    rng = np.random.default_rng(0)
    own = rng.choice([0, 1, 3], size=200, p=[0.7, 0.2, 0.1])
    seen = np.where(rng.random(200) < 0.8, own, rng.integers(0, 4, 200))
    result = recognition(own, seen, clusters=4, rng=rng)
    assert result.accuracy == pytest.approx(recall_score(own, seen, labels=[0, 1, 3], average="macro"))
    assert result.recall[2] is None
    assert result.intervals[2] is None
    assert np.array(result.confusion).sum() == result.n == 200
    assert result.recall[1] == pytest.approx((seen[own == 1] == 1).mean())
    assert result.interval[0] < result.accuracy < result.interval[1]


def test_the_interval_covers_the_true_accuracy() -> None:
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        own = np.repeat([0, 1], [60, 30])
        right = rng.random(90) < np.where(own == 0, 0.9, 0.6)
        result = recognition(own, np.where(right, own, 1 - own), clusters=2, rng=rng)
        covered += result.interval[0] <= 0.75 <= result.interval[1]
    assert 178 <= covered <= 200  # 95 % of 200, and what a bootstrap of 30 images leaves to be wished for


def test_whoever_says_always_the_same_has_the_accuracy_of_chance() -> None:
    result = recognition(np.arange(40) % 4, np.zeros(40, np.int64), clusters=4, rng=np.random.default_rng(0))
    assert result.accuracy == 0.25
