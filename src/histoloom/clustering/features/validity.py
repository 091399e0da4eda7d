"""Where the five indices and k-means are computed: one vector a patch, the same for every k and method.

Shapes: N patches, C channels, h x w positions, D features, M codes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from histoloom.autoencoder.latents import LatentSet

CHUNK = 1024


def pooled(z_NChw: Tensor) -> Tensor:
    """Mean and deviation of each channel over a patch's positions, (N, 2 C): what is in it, not where."""
    return torch.cat([z_NChw.mean(dim=(2, 3)), z_NChw.std(dim=(2, 3), correction=0)], dim=1)


def hellinger(histogram_NM: Tensor) -> Tensor:
    """Square roots of shares, (N, M): Euclidean distance between them is the Hellinger distance (times sqrt 2)."""
    return histogram_NM.sqrt()


def features_of(latents: LatentSet, rows: np.ndarray, *, kind: str, clusters: Path | None = None) -> np.ndarray:
    """Features of ``rows``, float32 (len(rows), D): ``pooled``, ``codes``, ``flat``, or ``same``.

    ``same``: those that the clusters are made of, as ``features.npy`` in the folder ``clusters`` has them.
    """
    if kind == "same":
        assert clusters is not None, "the clusters' own features lie in their folder"
        return np.asarray(np.load(clusters / "features.npy", mmap_mode="r")[rows])
    if kind == "codes":
        return hellinger(torch.from_numpy(np.asarray(latents.histograms[rows]))).numpy()
    parts = []
    for start in range(0, len(rows), CHUNK):
        z_NChw = latents.normalised(rows[start : start + CHUNK])
        parts.append((pooled(z_NChw) if kind == "pooled" else z_NChw.flatten(1)).numpy())
    return np.concatenate(parts)
