"""Improved precision and recall (Kynkaanniemi et al., NeurIPS 2019).

Legend of shapes: N real and M synthetic images, D features, B of them in a block.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from histoloom.evaluation.set_metrics.base import Estimate, SetMetric, share
from histoloom.evaluation.set_metrics.neighbours import TIE, blocks, radii

NEIGHBOURS = 3


def covered(points_ND: np.ndarray, *, by_MD: np.ndarray) -> np.ndarray:
    """Whether each point (N,) lies in the ball of one of ``by_MD`` that reaches to its third neighbour (equation 1)."""
    radii_M = radii(by_MD, neighbours=NEIGHBOURS) * (1 + TIE)
    found_N = np.empty(len(points_ND), bool)
    for rows, distances_BM in blocks(points_ND, by_MD):
        found_N[rows] = (distances_BM <= radii_M).any(axis=1)
    return found_N


def precision(real_ND: np.ndarray, synthetic_MD: np.ndarray) -> float:
    """The share of synthetic images that lie among real ones."""
    return float(covered(synthetic_MD, by_MD=real_ND).mean())


def recall(real_ND: np.ndarray, synthetic_MD: np.ndarray) -> float:
    """The share of real images that lie among synthetic ones."""
    return float(covered(real_ND, by_MD=synthetic_MD).mean())


def _estimate(real_ND: np.ndarray, synthetic_MD: np.ndarray, *, rng: np.random.Generator) -> Mapping[str, Estimate]:  # noqa: ARG001 - nothing is drawn
    return {
        "precision": share(covered(synthetic_MD, by_MD=real_ND)),
        "recall": share(covered(real_ND, by_MD=synthetic_MD)),
    }


METRIC = SetMetric({"precision": "larger", "recall": "larger"}, _estimate)
