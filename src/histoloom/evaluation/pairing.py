"""Which images are compared: seeded pairs, drawn uniformly from all that are allowed, each at most once.

Shapes: L and R images on the two sides, P pairs. Pairs are (P, 2) int64: a number on the left, one on the right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Pairs = NDArray[np.int64]


def all_pairs(left: int, right: int, *, count: int, rng: np.random.Generator) -> Pairs:
    """``count`` distinct pairs, or all where there are fewer, of ``left`` by ``right`` images."""
    return pairs_across(np.zeros(left, np.int64), np.ones(right, np.int64), count=count, rng=rng)


def pairs_across(
    left_groups_L: Sequence[object] | np.ndarray,
    right_groups_R: Sequence[object] | np.ndarray,
    *,
    count: int,
    rng: np.random.Generator,
) -> Pairs:
    """``count`` distinct pairs whose two images are of different groups, or all such pairs where there are fewer.

    Uniform over the allowed pairs, without listing them.
    """
    codes = np.unique(np.concatenate([np.asarray(left_groups_L), np.asarray(right_groups_R)]), return_inverse=True)[1]
    left_L, right_R = codes[: len(left_groups_L)], codes[len(left_groups_L) :]
    order_R = np.argsort(right_R, kind="stable")
    starts_L = np.searchsorted(right_R, left_L, side="left", sorter=order_R)
    sizes_L = np.searchsorted(right_R, left_L, side="right", sorter=order_R) - starts_L
    ends_L = np.cumsum(len(right_R) - sizes_L)
    total = int(ends_L[-1]) if len(ends_L) else 0
    if total == 0:
        return np.empty((0, 2), np.int64)
    drawn_P = rng.choice(total, size=min(count, total), replace=False)
    i_P = np.searchsorted(ends_L, drawn_P, side="right")
    partner_P = drawn_P - (ends_L[i_P] - (len(right_R) - sizes_L[i_P]))
    # Partners are numbered in the order of groups, with the left image's own group cut out.
    partner_P = partner_P + np.where(partner_P >= starts_L[i_P], sizes_L[i_P], 0)
    return np.stack([i_P, order_R[partner_P]], axis=1).astype(np.int64)


def real_pairs(
    rows: np.ndarray, others: np.ndarray, *, slides: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[Pairs, bool]:
    """Pairs of real patches of different slides, as row numbers, and whether they had to be of the same slide.

    ``rows`` are compared with ``others`` (the two may overlap); ``slides`` says each row's slide. Only where all of
    them lie in one slide are two different patches of it paired. A pair and its mirror image count once.
    """
    pairs = pairs_across(slides[rows], slides[others], count=2 * count, rng=rng)
    same_slide = len(pairs) == 0
    if same_slide:
        pairs = pairs_across(rows, others, count=2 * count, rng=rng)
    numbers = np.stack([rows[pairs[:, 0]], others[pairs[:, 1]]], axis=1)
    first = np.unique(np.sort(numbers, axis=1), axis=0, return_index=True)[1]
    return numbers[np.sort(first)][:count], same_slide and len(first) > 0


def disjoint_pairs(n: int, *, count: int, rng: np.random.Generator) -> Pairs:
    """At most ``count`` pairs of ``n`` images in which no image comes twice."""
    shuffled = rng.permutation(n)[: 2 * min(count, n // 2)]
    return shuffled.reshape(-1, 2).astype(np.int64)
