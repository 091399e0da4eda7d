"""Clusterings that information maximisation is compared with, on the same features and under one interface.

Shapes: N points, D features, K clusters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.mixture import GaussianMixture

from histoloom.seeding import derive

NEIGHBOURS = 15
_SHRINKAGE = 1e-4  # of the features' mean variance, added to each covariance
_MIXTURE_STARTS = 2
KMEANS_STARTS = 4


def kmeans_labels(x_ND: np.ndarray, *, k: int, seed: int) -> np.ndarray:
    """k-means (Lloyd 1982; Arthur and Vassilvitskii 2007): labels 0..k-1, numbered by falling size.

    The best of ``KMEANS_STARTS`` seeded starts by inertia.

    Features are taken as they are: on pooled latents, giving every feature the same deviation first made the agreement
    with true tissue worse.
    """
    model = KMeans(n_clusters=k, n_init=KMEANS_STARTS, random_state=derive(seed, "kmeans", k) % 2**32)
    return by_falling_size(model.fit_predict(x_ND), k=k)


def by_falling_size(labels_N: np.ndarray, *, k: int) -> np.ndarray:
    """The same clusters, numbered so that cluster 0 is the largest."""
    order_K = np.argsort(-np.bincount(labels_N, minlength=k), kind="stable")
    number_K = np.empty(k, dtype=np.int64)
    number_K[order_K] = np.arange(k)
    return number_K[labels_N]


def gaussian_mixture_labels(x_ND: np.ndarray, *, k: int, seed: int) -> np.ndarray:
    """The likeliest component of a mixture of K full-covariance Gaussians, the best of two starts by likelihood.

    For features of few dimensions: whiten pooled latents first (``diffusion.latent_space``).
    """
    model = GaussianMixture(
        k,
        reg_covar=_SHRINKAGE * float(x_ND.var(axis=0).mean()),
        n_init=_MIXTURE_STARTS,
        random_state=derive(seed, "mixture", k) % 2**32,
    )
    return by_falling_size(model.fit_predict(x_ND.astype(np.float64)), k=k)


def spectral_labels(x_ND: np.ndarray, *, k: int, seed: int) -> np.ndarray:
    """Spectral clustering of the graph of nearest neighbours (Ng et al. 2001; von Luxburg 2007)."""
    model = SpectralClustering(
        k,
        affinity="nearest_neighbors",
        n_neighbors=min(NEIGHBOURS, len(x_ND) - 1),
        assign_labels="cluster_qr",
        random_state=derive(seed, "spectral", k) % 2**32,
    )
    with warnings.catch_warnings():
        # A graph in several parts is what clear clusters give.
        warnings.filterwarnings("ignore", message="Graph is not fully connected")
        return by_falling_size(model.fit_predict(x_ND), k=k)


BASELINES: Mapping[str, Callable[..., np.ndarray]] = {
    "kmeans": kmeans_labels,
    "gaussian_mixture": gaussian_mixture_labels,
    "spectral": spectral_labels,
}
"""By name: ``method(x_ND, k=..., seed=...)`` gives labels 0..k-1 (N,), numbered by falling size."""
