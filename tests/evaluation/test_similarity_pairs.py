"""Pairs: distinct, uniform, seeded, and never of one slide where another can be had."""

from __future__ import annotations

import numpy as np
import pytest

from histoloom.evaluation.similarity import all_pairs, disjoint_pairs, pairs_across, real_pairs
from histoloom.seeding import numpy_generator


def distinct(pairs: np.ndarray) -> bool:
    return len(np.unique(pairs, axis=0)) == len(pairs)


@pytest.mark.parametrize("count", [1, 5, 1000])
def test_all_pairs_are_distinct_and_capped(count: int) -> None:
    pairs = all_pairs(4, 6, count=count, rng=numpy_generator(0, "t"))
    assert pairs.shape == (min(count, 24), 2)
    assert distinct(pairs)
    assert (pairs < [4, 6]).all()


def test_same_stream_same_pairs() -> None:
    first, again, other = (all_pairs(50, 50, count=20, rng=numpy_generator(seed, "t")) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_pairs_across_are_exactly_those_of_different_groups() -> None:
    left, right = ["a", "b", "b", "c"], ["b", "a", "d", "a", "b"]
    pairs = pairs_across(left, right, count=100, rng=numpy_generator(0, "t"))
    expected = {(i, j) for i, a in enumerate(left) for j, b in enumerate(right) if a != b}
    assert {(int(i), int(j)) for i, j in pairs} == expected
    assert distinct(pairs)


def test_pairs_across_are_uniform() -> None:
    left, right = np.array([0, 0, 1]), np.array([0, 1, 1, 2])
    counts = np.zeros((3, 4))
    for seed in range(1500):
        i, j = pairs_across(left, right, count=1, rng=numpy_generator(seed, "t"))[0]
        counts[i, j] += 1
    allowed = left[:, None] != right[None, :]
    assert (counts[~allowed] == 0).all()
    # 8 allowed pairs, 1500 draws: 187.5 each, standard deviation 12.8.
    assert np.abs(counts[allowed] - 1500 / allowed.sum()).max() < 4.5 * 12.8


@pytest.mark.parametrize(("left", "right"), [([], [1]), ([1], []), ([1, 1], [1])])
def test_nothing_to_pair(left: list[int], right: list[int]) -> None:
    assert pairs_across(np.array(left), np.array(right), count=3, rng=numpy_generator(0, "t")).shape == (0, 2)


def test_real_pairs_never_share_a_slide() -> None:
    slides = np.random.default_rng(0).choice(["s1", "s2", "s3"], size=60, p=[0.8, 0.15, 0.05])
    pairs, same_slide = real_pairs(
        np.arange(0, 60, 2), np.arange(60), slides=slides, count=200, rng=numpy_generator(0, "t")
    )
    assert not same_slide
    assert len(pairs) == 200
    assert (slides[pairs[:, 0]] != slides[pairs[:, 1]]).all()
    assert distinct(np.sort(pairs, axis=1))


def test_real_pairs_of_a_single_slide_say_so() -> None:
    rows = np.array([3, 5, 8])
    pairs, same_slide = real_pairs(rows, rows, slides=np.array(["only"] * 9), count=10, rng=numpy_generator(0, "t"))
    assert same_slide
    assert {tuple(sorted(pair)) for pair in pairs.tolist()} == {(3, 5), (3, 8), (5, 8)}
    assert len(pairs) == 3


def test_a_single_patch_has_no_pair() -> None:
    pairs, same_slide = real_pairs(
        np.array([0]), np.array([0]), slides=np.array(["only"]), count=10, rng=numpy_generator(0, "t")
    )
    assert len(pairs) == 0
    assert not same_slide


@pytest.mark.parametrize(("n", "count", "pairs"), [(1, 5, 0), (2, 5, 1), (9, 3, 3), (9, 100, 4)])
def test_disjoint_pairs_use_no_image_twice(n: int, count: int, pairs: int) -> None:
    drawn = disjoint_pairs(n, count=count, rng=numpy_generator(0, "t"))
    assert drawn.shape == (pairs, 2)
    assert len(np.unique(drawn)) == drawn.size
