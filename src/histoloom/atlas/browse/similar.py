"""The patches most like those of a region, by the features that the clusters' indices and maps are computed from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.features.bank import validity_features

_BLOCK = 4096  # patches whose features are in memory at once


def most_similar(latents: Path, *, clusters: Path, kind: str, region_ids: list[str], n: int) -> list[str]:
    """The ids of the ``n`` patches nearest to the mean of the features of ``region_ids``, the nearest first.

    The region's own patches are left out. ``kind`` is ``clusters.validity_features``; distances are Euclidean.
    """
    features = LatentSet.open(latents)
    ids_N = features.table["patch_id"].to_numpy(dtype=str)
    inside_N = np.isin(ids_N, region_ids)

    def block(rows_M: np.ndarray) -> np.ndarray:
        return validity_features(features, rows_M, kind=kind, clusters=clusters).astype(np.float64)

    region = np.flatnonzero(inside_N)
    if not len(region):
        return []
    starts = range(0, len(region), _BLOCK)
    mean_D = sum(block(region[start : start + _BLOCK]).sum(axis=0) for start in starts) / len(region)
    others, distances = np.flatnonzero(~inside_N), []
    for start in range(0, len(others), _BLOCK):
        distances.append(((block(others[start : start + _BLOCK]) - mean_D) ** 2).sum(axis=1))
    if not distances:
        return []
    return ids_N[others[np.argsort(np.concatenate(distances), kind="stable")[:n]]].tolist()
