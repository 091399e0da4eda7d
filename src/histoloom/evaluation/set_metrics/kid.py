"""The kernel distance of Binkowski et al. (ICLR 2018): unbiased squared MMD with a cubic kernel.

Legend of shapes: N real and M synthetic images, D features.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from histoloom.evaluation.set_metrics.base import Estimate, SetMetric, with_interval

BLOCK = 1024
MOST = 1000
"""images of a part from which the interval is told, as in torch-fidelity and clean-fid"""


def kernel_distance(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    """The unbiased estimate (Gretton et al. 2012, equation 3) of MMD^2 with k(x, y) = (x y / D + 1)^3.

    torch-fidelity and clean-fid give the mean of it over random subsets; here it is that of all images, which is what
    such a mean tends to. It is around 0, also below, where the sets are of one distribution, whatever the number of
    images. Raises ``ValueError`` for fewer than two images on a side.
    """
    if min(len(a_ND), len(b_MD)) < 2:
        raise ValueError(f"an unbiased MMD needs at least two images, got {len(a_ND)} and {len(b_MD)}")
    return _within(a_ND) + _within(b_MD) - 2 * _across(a_ND, b_MD) / (len(a_ND) * len(b_MD))


def _within(x_ND: np.ndarray) -> float:
    """The mean of the kernel over pairs of different images."""
    total = 0.0
    for start in range(0, len(x_ND), BLOCK):
        block, later = x_ND[start : start + BLOCK], x_ND[start + BLOCK :]
        own = _kernel(block, block)
        total += float(own.sum() - np.trace(own)) + 2 * _across(block, later)
    return total / (len(x_ND) * (len(x_ND) - 1))


def _across(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    parts = (
        _kernel(a_ND[i : i + BLOCK], b_MD[j : j + BLOCK]).sum()
        for i in range(0, len(a_ND), BLOCK)
        for j in range(0, len(b_MD), BLOCK)
    )
    return float(sum(parts, np.float64(0.0)))


def _kernel(a_ND: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    products = np.asarray(a_ND, np.float64) @ np.asarray(b_MD, np.float64).T
    base: np.ndarray = products / a_ND.shape[1] + 1
    return base * base * base


def _estimate(real_ND: np.ndarray, synthetic_MD: np.ndarray, *, rng: np.random.Generator) -> Mapping[str, Estimate]:
    return {"kid": with_interval(kernel_distance, real_ND, synthetic_MD, rng=rng, most=MOST)}


METRIC = SetMetric({"kid": "smaller"}, _estimate)
