"""The distance of CMMD (Jayasumana et al., CVPR 2024), on any features: named MMD here, since CMMD means CLIP's.

Legend of shapes: N real and M synthetic images, D features.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from histoloom.evaluation.set_metrics.base import Estimate, SetMetric, with_interval

SIGMA = 10.0
SCALE = 1000.0
BLOCK = 1024
MOST = 1000


def gaussian_mmd(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    """1000 MMD^2 of features at unit length with k(x, y) = exp(-|x - y|^2 / (2 sigma^2)), sigma = 10.

    It is the biased estimate (Gretton et al. 2012, equation 5), as in the authors' code: 0 for equal sets, never below,
    and of the order of 1/n above 0 for other sets of one distribution. Unlike Frechet's it takes nothing to be
    Gaussian.
    """
    a_ND, b_MD = _unit(a_ND), _unit(b_MD)
    value = _mean(a_ND, a_ND) + _mean(b_MD, b_MD) - 2 * _mean(a_ND, b_MD)
    return max(0.0, SCALE * value)


def _unit(x_ND: np.ndarray) -> np.ndarray:
    x_ND = np.asarray(x_ND, np.float64)
    unit_ND: np.ndarray = x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), np.finfo(float).tiny)
    return unit_ND


def _mean(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    """The mean of k - 1 over all pairs: k is so near to 1 everywhere that its own digits would be lost."""
    total = 0.0
    for i in range(0, len(a_ND), BLOCK):
        for j in range(0, len(b_MD), BLOCK):
            squares = np.maximum(2 - 2 * a_ND[i : i + BLOCK] @ b_MD[j : j + BLOCK].T, 0)
            total += float(np.expm1(squares / (-2 * SIGMA**2)).sum())
    return total / (len(a_ND) * len(b_MD))


def _estimate(real_ND: np.ndarray, synthetic_MD: np.ndarray, *, rng: np.random.Generator) -> Mapping[str, Estimate]:
    found = with_interval(gaussian_mmd, real_ND, synthetic_MD, rng=rng, most=MOST)
    return {"mmd": Estimate(found.value, max(0.0, found.low), found.high)}


METRIC = SetMetric({"mmd": "smaller"}, _estimate)
