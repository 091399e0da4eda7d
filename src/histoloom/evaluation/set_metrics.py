"""Metrics of two sets of images, from their features alone: Frechet distance, KID, MMD, precision, recall, density,
coverage.

A new metric is an estimator (``SetEstimator``) and a line in ``SET_METRICS``. Legend of shapes: N real and M synthetic
images, D features, R = min(N, D) rows of a factor, B rows of a block. Features are float, of any unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.stats import t as student

from histoloom.evaluation.results import Better
from histoloom.evaluation.statistics import Estimate, bootstrap_interval, share_estimate

BLOCK = 1024
"""rows that are computed at once, which bounds memory"""
SUBSETS = 12
LEVEL = 0.95
TIE = 1e-9
"""Squared distances that differ by less than this share are equal: the same pair rounds differently in other blocks."""

SetFunction = Callable[[np.ndarray, np.ndarray], float]
"""A number of two sets of features, (N, D) and (M, D)."""


class SetEstimator(Protocol):
    """Estimates by name of real (N, D) and synthetic (M, D) features; ``rng`` draws what the intervals need."""

    def __call__(
        self, real_ND: np.ndarray, synthetic_MD: np.ndarray, /, *, rng: np.random.Generator
    ) -> Mapping[str, Estimate]: ...


@dataclass(frozen=True)
class SetMetric:
    """A metric: the names of its values, each with what is better, and how they are computed."""

    values: Mapping[str, Better]
    estimate: SetEstimator
    fits_covariance: bool = False
    """a covariance needs more images than there are features"""


@dataclass(frozen=True)
class DistanceEstimator:
    """Estimates ``distance`` of the whole sets, with an interval from its spread over random subsets of both.

    Subsets are halves, or at most ``max_subset`` images, drawn without replacement. The spread s over subsets of a
    share q of the images stands for a standard error s sqrt(q / (1 - q)) of the whole (Shao & Wu 1989, Annals of
    Statistics 17(3), 1176: the delete-d jackknife); the interval is Student's with SUBSETS - 1 degrees of freedom. It
    says how well the value over these images is known, not how it varies over patients or trainings, and it does not
    remove a bias that the value has at this number of images.
    """

    name: str
    distance: SetFunction
    max_subset: float = np.inf
    least: float = 0.0
    """the least value that the distance can have, which bounds the interval"""

    def __call__(
        self, real_ND: np.ndarray, synthetic_MD: np.ndarray, /, *, rng: np.random.Generator
    ) -> Mapping[str, Estimate]:
        """See ``SetEstimator``."""
        share = min(0.5, self.max_subset / max(len(real_ND), len(synthetic_MD)))

        def subset(x_ND: np.ndarray) -> np.ndarray:
            return x_ND[np.sort(rng.choice(len(x_ND), size=max(2, int(len(x_ND) * share)), replace=False))]

        value = self.distance(real_ND, synthetic_MD)
        values_S = [self.distance(subset(real_ND), subset(synthetic_MD)) for _ in range(SUBSETS)]
        error = float(np.std(values_S, ddof=1)) * np.sqrt(share / (1 - share))
        half_width = float(student.ppf((1 + LEVEL) / 2, SUBSETS - 1)) * error
        return {self.name: Estimate(value, (max(self.least, value - half_width), value + half_width))}


# --- Frechet distance


def frechet_distance(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    """The Frechet distance between Gaussians fitted to two sets of features; on Inception's features it is FID.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Dowson & Landau 1982, equation 16; Heusel et al., NeurIPS 2017),
    covariances over n - 1. With factors F^T F = C the last trace is the sum of the singular values of F_a F_b^T, so
    that no covariance is formed and none has to be of full rank: exact for fewer images than features. The value
    shrinks as images are added (a bias of the order of 1/n): compare values of the same numbers of images only. Raises
    ``ValueError`` for fewer than two images on a side.
    """
    if min(len(a_ND), len(b_MD)) < 2:
        raise ValueError(f"a covariance needs at least two images, got {len(a_ND)} and {len(b_MD)}")
    mean_D, a_RD = _mean_and_factor(a_ND)
    other_D, b_RD = _mean_and_factor(b_MD)
    shared = np.linalg.svd(a_RD @ b_RD.T, compute_uv=False).sum()
    spread = np.square(a_RD).sum() + np.square(b_RD).sum() - 2 * shared
    # Rounding alone can take equal sets below 0.
    return max(0.0, float(np.square(mean_D - other_D).sum() + spread))


def _mean_and_factor(x_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean (D,), and a factor F (R, D) whose F^T F is the covariance."""
    x_ND = np.asarray(x_ND, np.float64)
    mean_D = x_ND.mean(axis=0)
    centred_ND = (x_ND - mean_D) / np.sqrt(len(x_ND) - 1)
    if len(x_ND) <= x_ND.shape[1]:
        return mean_D, centred_ND
    factor_DD: np.ndarray = np.asarray(np.linalg.qr(centred_ND, mode="r"))
    return mean_D, factor_DD


# --- kernel distances

KERNEL_SUBSET = 1000
"""images of a subset of which the interval is computed, as in torch-fidelity and clean-fid"""
MMD_SIGMA = 10.0
MMD_SCALE = 1000.0


def kernel_distance(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    """KID (Binkowski et al., ICLR 2018): the unbiased estimate of MMD^2 with k(x, y) = (x y / D + 1)^3.

    The estimate is equation 3 of Gretton et al. 2012. torch-fidelity and clean-fid give the mean of it over random
    subsets; here it is that of all images, which is what such a mean tends to. It is around 0, also below, where the
    sets are of one distribution, whatever the number of images. Raises ``ValueError`` for fewer than two images on a
    side.
    """
    if min(len(a_ND), len(b_MD)) < 2:
        raise ValueError(f"an unbiased MMD needs at least two images, got {len(a_ND)} and {len(b_MD)}")
    across = _cubic_kernel_sum(a_ND, b_MD) / (len(a_ND) * len(b_MD))
    return _cubic_kernel_mean_within(a_ND) + _cubic_kernel_mean_within(b_MD) - 2 * across


def _cubic_kernel_mean_within(x_ND: np.ndarray) -> float:
    """The mean of the kernel over pairs of different images; the kernel is symmetric, so half of the blocks will do."""
    total = 0.0
    for start in range(0, len(x_ND), BLOCK):
        block, later = x_ND[start : start + BLOCK], x_ND[start + BLOCK :]
        own = _cubic_kernel(block, block)
        total += float(own.sum() - np.trace(own)) + 2 * _cubic_kernel_sum(block, later)
    return total / (len(x_ND) * (len(x_ND) - 1))


def _cubic_kernel_sum(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    sums = (
        _cubic_kernel(a_ND[i : i + BLOCK], b_MD[j : j + BLOCK]).sum()
        for i in range(0, len(a_ND), BLOCK)
        for j in range(0, len(b_MD), BLOCK)
    )
    return float(sum(sums, np.float64(0.0)))


def _cubic_kernel(a_ND: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    products = np.asarray(a_ND, np.float64) @ np.asarray(b_MD, np.float64).T
    base: np.ndarray = products / a_ND.shape[1] + 1
    return base * base * base


def gaussian_mmd(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    """1000 MMD^2 of features at unit length with k(x, y) = exp(-|x - y|^2 / (2 sigma^2)), sigma = 10.

    The distance of CMMD (Jayasumana et al., CVPR 2024) on any features; it is named MMD, since CMMD means CLIP's. It is
    the biased estimate (Gretton et al. 2012, equation 5), as in the authors' code: 0 for equal sets, never below, and
    of the order of 1/n above 0 for other sets of one distribution. Unlike Frechet's it assumes no Gaussian.
    """
    a_ND, b_MD = _unit_length(a_ND), _unit_length(b_MD)
    value = (
        _gaussian_kernel_mean(a_ND, a_ND) + _gaussian_kernel_mean(b_MD, b_MD) - 2 * _gaussian_kernel_mean(a_ND, b_MD)
    )
    return max(0.0, MMD_SCALE * value)


def _unit_length(x_ND: np.ndarray) -> np.ndarray:
    x_ND = np.asarray(x_ND, np.float64)
    unit_ND: np.ndarray = x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), np.finfo(float).tiny)
    return unit_ND


def _gaussian_kernel_mean(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    """The mean of k - 1 over all pairs: k is so near to 1 everywhere that its own digits would be lost."""
    total = 0.0
    for i in range(0, len(a_ND), BLOCK):
        for j in range(0, len(b_MD), BLOCK):
            squares = np.maximum(2 - 2 * a_ND[i : i + BLOCK] @ b_MD[j : j + BLOCK].T, 0)
            total += float(np.expm1(squares / (-2 * MMD_SIGMA**2)).sum())
    return total / (len(a_ND) * len(b_MD))


# --- nearest neighbours: a set covers what lies in the balls around its points that reach to their k-th neighbours

PRECISION_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5


def distance_blocks(a_ND: np.ndarray, b_MD: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared Euclidean distances of ``a_ND`` to ``b_MD``, ``BLOCK`` rows at a time: the rows, and float64 (B, M)."""
    # Around a common point the products are small, so that few digits cancel.
    centre_D = np.asarray(b_MD, np.float64).mean(axis=0)
    b_MD = b_MD - centre_D
    squares_M = np.square(b_MD).sum(axis=1)
    for start in range(0, len(a_ND), BLOCK):
        a_BD = a_ND[start : start + BLOCK] - centre_D
        squares_BM = np.square(a_BD).sum(axis=1)[:, None] + squares_M - 2 * a_BD @ b_MD.T
        yield slice(start, start + len(a_BD)), np.maximum(squares_BM, 0)


def squared_radii(x_ND: np.ndarray, *, neighbours: int) -> np.ndarray:
    """The squared distance (N,) of each row to its ``neighbours``-th nearest other row.

    Raises ``ValueError`` where there are not so many others.
    """
    if len(x_ND) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need more than {neighbours} images, got {len(x_ND)}")
    radii_N = np.empty(len(x_ND))
    for rows, distances_BN in distance_blocks(x_ND, x_ND):
        distances_BN[np.arange(len(distances_BN)), np.arange(rows.start, rows.stop)] = np.inf
        radii_N[rows] = np.partition(distances_BN, neighbours - 1, axis=1)[:, neighbours - 1]
    return radii_N


def covered(points_ND: np.ndarray, *, by_MD: np.ndarray) -> np.ndarray:
    """Whether each point (N,) lies in the ball of one of ``by_MD`` that reaches to its third neighbour (equation 1).

    Improved precision and recall of Kynkaanniemi et al. (NeurIPS 2019).
    """
    radii_M = squared_radii(by_MD, neighbours=PRECISION_NEIGHBOURS) * (1 + TIE)
    covered_N = np.empty(len(points_ND), bool)
    for rows, distances_BM in distance_blocks(points_ND, by_MD):
        covered_N[rows] = (distances_BM <= radii_M).any(axis=1)
    return covered_N


def estimate_precision_recall(
    real_ND: np.ndarray, synthetic_MD: np.ndarray, /, *, rng: np.random.Generator
) -> Mapping[str, Estimate]:
    """Improved precision and recall: the share of synthetic images among real ones, and of real among synthetic."""
    del rng  # Wilson's interval draws nothing
    return {
        "precision": share_estimate(covered(synthetic_MD, by_MD=real_ND)),
        "recall": share_estimate(covered(real_ND, by_MD=synthetic_MD)),
    }


def estimate_density_coverage(
    real_ND: np.ndarray, synthetic_MD: np.ndarray, /, *, rng: np.random.Generator
) -> Mapping[str, Estimate]:
    """Density and coverage (Naeem et al., ICML 2020).

    Density (equation 4): in how many real balls a synthetic image lies, over 5. Coverage (equation 6): the share of
    real balls in which a synthetic image lies. A ball reaches to the fifth neighbour and is open, so that equal sets
    have density 1.
    """
    radii_N = squared_radii(real_ND, neighbours=DENSITY_NEIGHBOURS) * (1 - TIE)
    density_M = np.empty(len(synthetic_MD))
    covered_N = np.zeros(len(real_ND), bool)
    for rows, distances_BN in distance_blocks(synthetic_MD, real_ND):
        inside_BN = distances_BN < radii_N
        density_M[rows] = inside_BN.sum(axis=1) / DENSITY_NEIGHBOURS
        covered_N |= inside_BN.any(axis=0)
    density = Estimate(float(density_M.mean()), bootstrap_interval(density_M, rng=rng, level=LEVEL))
    return {"density": density, "coverage": share_estimate(covered_N)}


SET_METRICS: tuple[SetMetric, ...] = (
    SetMetric({"frechet": "smaller"}, DistanceEstimator("frechet", frechet_distance), fits_covariance=True),
    SetMetric({"kid": "smaller"}, DistanceEstimator("kid", kernel_distance, max_subset=KERNEL_SUBSET, least=-np.inf)),
    SetMetric({"mmd": "smaller"}, DistanceEstimator("mmd", gaussian_mmd, max_subset=KERNEL_SUBSET)),
    SetMetric({"precision": "larger", "recall": "larger"}, estimate_precision_recall),
    SetMetric({"density": "larger", "coverage": "larger"}, estimate_density_coverage),
)
