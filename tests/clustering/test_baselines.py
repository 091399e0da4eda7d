"""The baselines find what is plainly there, number by size, and repeat themselves."""

from __future__ import annotations

import numpy as np
import pytest
from clusterings import BASELINES
from sklearn.metrics import adjusted_rand_score

from histoloom.seeding import numpy_generator


def separated(*, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three groups of 200, 100 and 50 points in three dimensions, apart, yet joined by a few neighbours."""
    truth = np.repeat([0, 1, 2], [200, 100, 50])
    rng = numpy_generator(seed, "separated")
    return 6 * np.eye(3)[truth] + rng.standard_normal((350, 3)), truth


@pytest.mark.parametrize("method", sorted(BASELINES))
def test_finds_separated_groups_numbered_by_size(method: str) -> None:
    x, truth = separated(seed=1)
    labels = BASELINES[method](x, k=3, seed=0)
    assert adjusted_rand_score(truth, labels) > 0.97
    assert list(np.bincount(labels)) == sorted(np.bincount(labels), reverse=True)
    np.testing.assert_array_equal(labels, BASELINES[method](x, k=3, seed=0))
