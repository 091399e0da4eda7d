"""Distances between sets of features, some rows at a time.

Legend of shapes: N and M images, D features, B of the N in a block. Squared Euclidean distances, float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BLOCK = 1024
TIE = 1e-9
"""Squared distances that differ by less than this share are equal: the same pair rounds differently in other blocks."""


def blocks(a_ND: np.ndarray, b_MD: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The rows of a block and their squared distances (B, M) to all of ``b_MD``; memory is that of a block."""
    # Around a common point the products are small, so that few digits cancel.
    centre_D = np.asarray(b_MD, np.float64).mean(axis=0)
    b_MD = b_MD - centre_D
    squares_M = np.square(b_MD).sum(axis=1)
    for start in range(0, len(a_ND), BLOCK):
        a_BD = a_ND[start : start + BLOCK] - centre_D
        found_BM = np.square(a_BD).sum(axis=1)[:, None] + squares_M - 2 * a_BD @ b_MD.T
        yield slice(start, start + len(a_BD)), np.maximum(found_BM, 0)


def radii(x_ND: np.ndarray, *, neighbours: int) -> np.ndarray:
    """The squared distance (N,) of each row to its ``neighbours``-th nearest other row.

    Raises ``ValueError`` where there are not so many others.
    """
    if len(x_ND) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more than {neighbours} images, got {len(x_ND)}")
    found_N = np.empty(len(x_ND))
    for rows, distances_BN in blocks(x_ND, x_ND):
        own_B = np.arange(rows.start, rows.stop)
        distances_BN[np.arange(len(own_B)), own_B] = np.inf
        found_N[rows] = np.partition(distances_BN, neighbours - 1, axis=1)[:, neighbours - 1]
    return found_N
