"""Which cluster is the condition of each position of a field, and how clusters pass into each other.

Shapes: h x w latent positions of a field or of a window, M clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from histoloom.diffusion.generation.generator_spec import GeneratorSpec
from histoloom.diffusion.painting.layout import Layout
from histoloom.names import Label, clusters_of_tissue
from histoloom.seeding import numpy_generator

LEAST = 0.02
"""a cluster whose mask is nowhere above this in a window is not drawn there"""
TRUNCATE = 3.0
"""standard deviations after which a soft boundary ends"""


@dataclass(frozen=True)
class ConditionMap:
    """The cluster of each position, int16 (h, w), and the standard deviation of its soft boundaries, in positions."""

    cluster_hw: np.ndarray
    softness: float

    def masks(self, top: int, left: int, *, side: int) -> dict[int, np.ndarray]:
        """The share of each cluster at the positions of a window, float32 (side, side), 0..1; they sum to 1.

        It depends on the map alone, not on the window.
        """
        margin = int(TRUNCATE * self.softness + 0.5) if self.softness > 0 else 0
        height, width = self.cluster_hw.shape
        rows = slice(max(0, top - margin), min(height, top + side + margin))
        columns = slice(max(0, left - margin), min(width, left + side + margin))
        part_hw = self.cluster_hw[rows, columns]
        inner = np.s_[top - rows.start : top - rows.start + side, left - columns.start : left - columns.start + side]
        found = [int(cluster) for cluster in np.unique(part_hw)]
        if len(found) == 1:
            return {found[0]: np.ones((side, side), np.float32)}
        masks = {}
        for cluster in found:
            mask_hw = (part_hw == cluster).astype(np.float32)
            if margin:
                mask_hw = ndimage.gaussian_filter(mask_hw, self.softness, mode="nearest", truncate=TRUNCATE)
            masks[cluster] = mask_hw[inner]
        kept = {cluster: mask_hw for cluster, mask_hw in masks.items() if mask_hw.max() > LEAST}
        total_hw = np.sum(list(kept.values()), axis=0)
        return {cluster: mask_hw / total_hw for cluster, mask_hw in kept.items()}


def condition_map(
    layout: Layout,
    *,
    spec: GeneratorSpec,
    labels: Mapping[int, Label],
    k: int,
    seed: int,
    softness: float,
) -> ConditionMap:
    """The clusters of a layout's tissues at ``k``; ``labels``: of the clusters, with their names.

    A tissue of several clusters has all of them, by their frequencies, in cells of about two windows whose borders are
    those of a Voronoi diagram; they depend on ``seed`` and place alone. ``UserError`` for a tissue without a cluster.
    """
    spec.conditions.offset(k)
    names = {cluster: label.name for cluster, label in labels.items()}
    clusters = [clusters_of_tissue(names, name, k=k) for name in layout.names]
    cluster_hw = np.zeros(layout.tissue_hw.shape, np.int16)
    for place, several in enumerate(clusters):
        inside_hw = layout.tissue_hw == place
        if not inside_hw.any():
            continue
        if len(several) == 1:
            cluster_hw[inside_hw] = several[0]
        else:
            shares = [spec.frequencies[k][cluster] for cluster in several]
            rows, columns = np.nonzero(inside_hw)
            picked = _voronoi(rows, columns, cell=2 * spec.shape[1], shares=shares, seed=seed, place=place)
            cluster_hw[rows, columns] = np.array(several, np.int16)[picked]
    return ConditionMap(cluster_hw, softness)


def _voronoi(
    rows: np.ndarray, columns: np.ndarray, *, cell: int, shares: Sequence[float], seed: int, place: int
) -> np.ndarray:
    """Which of ``shares`` each position has, int64: that of the nearest of random points, one in each square cell."""
    weights = np.array(shares, float)
    weights = np.full(len(weights), 1.0) if weights.sum() == 0 else weights
    last_row, last_column = int(rows.max()) // cell + 2, int(columns.max()) // cell + 2
    rng = numpy_generator(seed, "painting", "cells", place)
    count = (last_row + 1) * (last_column + 1)
    offsets_M2 = rng.random((count, 2))
    choice_M = rng.choice(len(weights), size=count, p=weights / weights.sum())
    cells_M2 = np.stack(np.divmod(np.arange(count), last_column + 1), axis=1) - 1
    points_M2 = (cells_M2 + offsets_M2) * cell
    _, nearest = cKDTree(points_M2).query(np.stack([rows, columns], axis=1))
    return np.asarray(choice_M[nearest])
