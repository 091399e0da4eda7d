"""Where patches lie in two dimensions: principal components, t-SNE, UMAP.

Shape suffixes: N patches, D features, 2 the map's axes.
"""

from __future__ import annotations

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from histoloom.errors import UserError
from histoloom.seeding import derive

LEAST = 10
"""Patches below which there is no map: t-SNE needs some neighbours."""

NEIGHBOURS = 10
_PERPLEXITY = 30.0
_FIRST = 50
"""Principal components that t-SNE and UMAP start from, as van der Maaten and Hinton (2008) do."""


def embed(x_ND: np.ndarray, *, method: str, seed: int) -> np.ndarray:
    """The map of features, float64 (N, 2), each axis from 0 to 1: ``pca``, ``tsne`` or ``umap``.

    The same bytes on one machine. ``UserError`` where UMAP is not installed.
    """
    components = min(2 if method == "pca" else _FIRST, *x_ND.shape)
    x_ND = PCA(components, svd_solver="full").fit_transform(np.asarray(x_ND, dtype=np.float64))
    random_state = derive(seed, "report", "embedding", method) % 2**32
    if method == "tsne":
        perplexity = min(_PERPLEXITY, (len(x_ND) - 1) / 3)
        x_ND = TSNE(2, perplexity=perplexity, init="pca", random_state=random_state).fit_transform(x_ND)
    elif method == "umap":
        x_ND = _umap(x_ND, random_state=random_state)
    return _unit(np.asarray(x_ND, dtype=np.float64))


def _umap(x_ND: np.ndarray, *, random_state: int) -> np.ndarray:
    try:
        from umap import UMAP
    except ImportError as error:
        raise UserError(
            "report.embeddings has umap, which is an extra: pip install 'histoloom[umap]', or leave it out"
        ) from error
    neighbours = min(15, len(x_ND) - 1)
    xy_N2: np.ndarray = UMAP(n_neighbors=neighbours, random_state=random_state, n_jobs=1).fit_transform(x_ND)
    return xy_N2


def _unit(xy_N2: np.ndarray) -> np.ndarray:
    """Shrunk to 0..1; an axis on which all are equal lies in the middle, a missing one too."""
    xy_N2 = np.concatenate([xy_N2, np.zeros((len(xy_N2), 2 - xy_N2.shape[1]))], axis=1)
    low_2, high_2 = xy_N2.min(axis=0), xy_N2.max(axis=0)
    return np.where(high_2 > low_2, (xy_N2 - low_2) / np.where(high_2 > low_2, high_2 - low_2, 1), 0.5)


def neighbours(x_ND: np.ndarray) -> np.ndarray:
    """The rows of each patch's ``NEIGHBOURS`` nearest others, (N, n) int64; fewer where there are fewer."""
    n = min(NEIGHBOURS, len(x_ND) - 1)
    return NearestNeighbors(n_neighbors=n).fit(x_ND).kneighbors(return_distance=False).astype(np.int64)
