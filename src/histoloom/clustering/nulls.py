"""Data without clusters that otherwise resembles given data: what an index is compared with.

Legend of shapes: N points given, M points drawn, D features, R directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

Null = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def gaussian_null(x_ND: np.ndarray, m: int, rng: np.random.Generator) -> np.ndarray:
    """``m`` Gaussian points, (M, D), whose own mean and covariance are those of ``x_ND``, not only in expectation.

    Of Gaussian data, mean and covariance are all that there is to know: given these two, data drawn here have the very
    distribution of the given ones (as long as m = N), so that the comparison is fair however many the features. Beyond
    m - 1 directions only the widest are kept.
    """
    mean_D = x_ND.mean(0)
    _, scale_R, axes_RD = np.linalg.svd(x_ND - mean_D, full_matrices=False)
    r = min(len(scale_R), m - 1)
    noise_MR = rng.standard_normal((m, r))
    frame_MR = np.linalg.qr(noise_MR - noise_MR.mean(0))[0]
    drawn_MR = frame_MR * (scale_R[:r] * np.sqrt(m / len(x_ND)))
    return drawn_MR @ axes_RD[:r] + mean_D


def permuted_null(x_ND: np.ndarray, m: int, rng: np.random.Generator) -> np.ndarray:
    """``m`` points, (M, D), each feature permuted by itself: the same values of every feature, and nothing in common."""
    return np.stack([rng.permutation(column_N)[:m] for column_N in x_ND.T], axis=1)


NULLS: Mapping[str, Null] = {"gaussian": gaussian_null, "permuted": permuted_null}
