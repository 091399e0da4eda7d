"""Data without clusters that otherwise resembles given data: what an index is compared with.

Legend of shapes: N points given, M points drawn, D features, R directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

Draw = Callable[[int, np.random.Generator], np.ndarray]
"""``m`` points, (M, D)."""


def gaussian_null(x_ND: np.ndarray) -> Draw:
    """Gaussian points whose own mean and covariance are those of ``x_ND``, not only in expectation.

    Of Gaussian data, mean and covariance are all that there is to know: given these two, data drawn here have the very
    distribution of the given ones (where m = N), so that the comparison is fair however many the features. Beyond
    m - 1 directions only the widest are kept.
    """
    mean_D = x_ND.mean(0)
    _, scale_R, axes_RD = np.linalg.svd(x_ND - mean_D, full_matrices=False)
    scale_R = scale_R / np.sqrt(len(x_ND))

    def draw(m: int, rng: np.random.Generator) -> np.ndarray:
        r = min(len(scale_R), m - 1)
        noise_MR = rng.standard_normal((m, r))
        frame_MR = np.linalg.qr(noise_MR - noise_MR.mean(0))[0]
        drawn_MD: np.ndarray = (frame_MR * (scale_R[:r] * np.sqrt(m))) @ axes_RD[:r] + mean_D
        return drawn_MD

    return draw


def permuted_null(x_ND: np.ndarray) -> Draw:
    """Each feature of ``x_ND`` permuted by itself: the same values in every feature, and nothing in common; m <= N."""

    def draw(m: int, rng: np.random.Generator) -> np.ndarray:
        return np.stack([rng.permutation(column_N)[:m] for column_N in x_ND.T], axis=1)

    return draw


def components_null(x_ND: np.ndarray) -> Draw:
    """Each principal component of ``x_ND`` permuted by itself: the covariance, and the skew along its axes; m <= N."""
    mean_D = x_ND.mean(0)
    axes_RD = np.linalg.svd(x_ND - mean_D, full_matrices=False)[2]
    permuted = permuted_null((x_ND - mean_D) @ axes_RD.T)
    return lambda m, rng: permuted(m, rng) @ axes_RD + mean_D


NULLS: Mapping[str, Callable[[np.ndarray], Draw]] = {
    "gaussian": gaussian_null,
    "permuted": permuted_null,
    "components": components_null,
}
