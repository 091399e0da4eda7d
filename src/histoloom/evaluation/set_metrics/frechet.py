"""The Frechet distance between Gaussians fitted to two sets of features.

Heusel et al. (NeurIPS 2017) call it FID on Inception's features; on others it is named after them. Legend of shapes:
N real and M synthetic images, D features, R = min(N, D) rows of a factor.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from histoloom.evaluation.set_metrics.base import Estimate, SetMetric, with_interval


def frechet_distance(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Dowson & Landau 1982, equation 16), covariances over n - 1.

    With factors F^T F = C the last trace is the sum of the singular values of F_a F_b^T, so that no covariance is
    formed and none has to be of full rank: exact for fewer images than features. The value shrinks as images are added
    (a bias of the order of 1/n): compare values of the same numbers of images only. Raises ``ValueError`` for fewer
    than two images on a side.
    """
    if min(len(a_ND), len(b_MD)) < 2:
        raise ValueError(f"a covariance needs at least two images, got {len(a_ND)} and {len(b_MD)}")
    mean_D, a_RD = _moments(a_ND)
    other_D, b_RD = _moments(b_MD)
    shared = np.linalg.svd(a_RD @ b_RD.T, compute_uv=False).sum()
    spread = np.square(a_RD).sum() + np.square(b_RD).sum() - 2 * shared
    # Rounding alone can take equal sets below 0.
    return max(0.0, float(np.square(mean_D - other_D).sum() + spread))


def effective_dimension(x_ND: np.ndarray) -> float:
    """tr(C)^2 / tr(C^2): how many directions share the variance of the features; D where all have the same."""
    factor_RD = _moments(x_ND)[1]
    gram = factor_RD @ factor_RD.T if len(factor_RD) <= x_ND.shape[1] else factor_RD.T @ factor_RD
    return float(np.trace(gram) ** 2 / max(np.square(gram).sum(), np.finfo(float).tiny))


def _moments(x_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean, and a factor (R, D) whose F^T F is the covariance."""
    x_ND = np.asarray(x_ND, np.float64)
    mean_D = x_ND.mean(axis=0)
    centred_ND = (x_ND - mean_D) / np.sqrt(len(x_ND) - 1)
    if len(x_ND) <= x_ND.shape[1]:
        return mean_D, centred_ND
    factor_DD: np.ndarray = np.asarray(np.linalg.qr(centred_ND, mode="r"))
    return mean_D, factor_DD


def _estimate(real_ND: np.ndarray, synthetic_MD: np.ndarray, *, rng: np.random.Generator) -> Mapping[str, Estimate]:
    found = with_interval(frechet_distance, real_ND, synthetic_MD, rng=rng)
    return {"frechet": Estimate(found.value, max(0.0, found.low), found.high)}


METRIC = SetMetric({"frechet": "smaller"}, _estimate, moments=True)
