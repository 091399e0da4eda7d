"""Density and coverage (Naeem et al., ICML 2020).

Legend of shapes: N real and M synthetic images, D features, B of them in a block.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from histoloom.evaluation.set_metrics.base import Estimate, SetMetric, mean_interval, share
from histoloom.evaluation.set_metrics.neighbours import TIE, blocks, radii

NEIGHBOURS = 5


def densities(real_ND: np.ndarray, synthetic_MD: np.ndarray) -> np.ndarray:
    """For each synthetic image (M,): in how many real balls it lies, over 5 (equation 4)."""
    return _inside(real_ND, synthetic_MD)[0]


def coverages(real_ND: np.ndarray, synthetic_MD: np.ndarray) -> np.ndarray:
    """For each real image (N,): whether a synthetic one lies in its ball (equation 6)."""
    return _inside(real_ND, synthetic_MD)[1]


def _inside(real_ND: np.ndarray, synthetic_MD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both at once. A ball reaches to the fifth neighbour and is open, so that equal sets have density 1."""
    radii_N = radii(real_ND, neighbours=NEIGHBOURS) * (1 - TIE)
    density_M = np.empty(len(synthetic_MD))
    covered_N = np.zeros(len(real_ND), bool)
    for rows, distances_BN in blocks(synthetic_MD, real_ND):
        inside_BN = distances_BN < radii_N
        density_M[rows] = inside_BN.sum(axis=1) / NEIGHBOURS
        covered_N |= inside_BN.any(axis=0)
    return density_M, covered_N


def _estimate(real_ND: np.ndarray, synthetic_MD: np.ndarray, *, rng: np.random.Generator) -> Mapping[str, Estimate]:
    density_M, covered_N = _inside(real_ND, synthetic_MD)
    return {"density": mean_interval(density_M, rng=rng), "coverage": share(covered_N)}


METRIC = SetMetric({"density": "larger", "coverage": "larger"}, _estimate)
