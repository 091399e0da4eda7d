"""What evaluation says does not depend on how many threads compute it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from histoloom.evaluation.extractors import ExtractorSources, make_extractor
from histoloom.evaluation.originality.by_features import nearest_features
from histoloom.evaluation.originality.greys import to_greys
from histoloom.evaluation.originality.nearest import Gallery, nearest
from histoloom.evaluation.set_metrics import SET_METRICS

Result = TypeVar("Result")


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


def both(compute: Callable[[], Result]) -> tuple[Result, Result]:
    """What ``compute`` returns with one thread, and with two."""
    results: list[Result] = []
    for count in (1, 2):
        with threads(count):
            results.append(compute())
    return results[0], results[1]


def test_scores_of_copies(crops) -> None:
    samples, train = to_greys(crops(6, 64, seed=0)), to_greys(crops(40, 64, seed=1))
    one, two = both(lambda: nearest(samples, Gallery(train)))
    np.testing.assert_array_equal(one.score_N, two.score_N)
    np.testing.assert_array_equal(one.number_N, two.number_N)


def test_nearest_features() -> None:
    rng = np.random.default_rng(0)
    x_ND, train_MD = (rng.normal(size=(n, 300)).astype(np.float32) for n in (50, 400))
    one, two = both(lambda: nearest_features(x_ND, train_MD))
    np.testing.assert_array_equal(one[1], two[1])


@pytest.mark.usefixtures("squeeze_weights")
@pytest.mark.parametrize("name", ["pixels", "lpips-squeeze"])
def test_features(name: str, crops) -> None:
    images = crops(11, 64)
    extractor = make_extractor(name, sources=ExtractorSources(torch.device("cpu")))
    one, two = both(lambda: extractor.features(images))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("metric", SET_METRICS, ids=lambda metric: "+".join(metric.values))
def test_distances_of_sets(metric) -> None:
    rng = np.random.default_rng(1)
    sides = [np.abs(rng.standard_normal((n, 200), np.float32)) for n in (300, 260)]
    one, two = both(lambda: metric.estimate(*sides, rng=np.random.default_rng(2)))
    for name in metric.values:
        assert one[name].value == pytest.approx(two[name].value, rel=1e-9)
        assert one[name].interval[0] == pytest.approx(two[name].interval[0], rel=1e-6, abs=1e-9)
