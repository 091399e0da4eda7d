"""Pictures are shared out evenly, and no place of a slide is shown twice."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from histoloom.evaluation.reading.material import allot, distinct, preference_order, without_overlap
from histoloom.seeding import numpy_generator


@pytest.mark.parametrize("seed", range(8))
def test_as_even_as_capacities_allow(seed: int) -> None:
    rng = np.random.default_rng(seed)
    capacities = rng.integers(0, 9, 6).tolist()
    n = int(rng.integers(1, 40))
    counts = allot(n, capacities=capacities, rng=numpy_generator(seed, "t"))
    assert sum(counts) == min(n, sum(capacities))
    open_ = [count for count, limit in zip(counts, capacities, strict=True) if count < limit]
    assert all(count <= limit for count, limit in zip(counts, capacities, strict=True))
    if open_:
        assert max(open_) - min(open_) <= 1
        assert max(counts) <= max(open_) + 1 or min(open_) >= max(counts) - 1


def test_who_gets_the_odd_one_is_drawn() -> None:
    allotments = {tuple(allot(1, capacities=[3, 3, 3], rng=numpy_generator(seed, "t"))) for seed in range(30)}
    assert allotments == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}


def test_unseen_first_of_these_held_out_then_slides_in_turn() -> None:
    slides = ["a", "a", "a", "b", "b", "c"]
    held_out = np.array([True, True, True, True, True, False])
    uses = np.array([0, 0, 1, 0, 0, 0])
    order = preference_order(slides, held_out=held_out, uses=uses, rng=numpy_generator(0, "t"))
    assert order[-2:] == [5, 2]
    assert {slides[row] for row in order[:2]} == {"a", "b"}


def test_what_overlaps_is_left_out() -> None:
    places = pd.DataFrame(
        {"slide_id": ["a", "a", "b", "a"], "x": [0, 9, 9, 10], "y": [0, 0, 0, 0], "extent": [10.0, 10.0, 10.0, 10.0]}
    )
    assert without_overlap([0, 1, 2, 3], places=places, most=9) == [0, 2, 3]
    assert without_overlap([0, 1, 2, 3], places=places, most=2) == [0, 2]


def test_a_picture_that_was_seen_is_passed_over() -> None:
    seen = {"x"}
    assert distinct([0, 1, 2, 3], n=2, digest="xyyz".__getitem__, seen=seen) == [1, 3]
    assert seen == {"x", "y", "z"}
