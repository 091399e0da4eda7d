"""Other clusterings of the same features, under one interface: what information maximisation is compared with.

Shapes: N points, D features, K clusters.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np
from sklearn.cluster import SpectralClustering
from sklearn.mixture import GaussianMixture

from histoloom.clustering.kmeans import by_falling_size, kmeans_labels
from histoloom.seeding import derive

NEIGHBOURS = 15
_SHRINKAGE = 1e-4  # of the features' mean variance, added to each covariance
_STARTS = 2


def gaussian_mixture_labels(x_ND: np.ndarray, *, k: int, seed: int) -> np.ndarray:
    """The likeliest component of a mixture of K full-covariance Gaussians, the best of two starts by likelihood.

    For features of few dimensions: whiten pooled latents first (``diffusion.latent_space``).
    """
    model = GaussianMixture(
        k,
        reg_covar=_SHRINKAGE * float(x_ND.var(axis=0).mean()),
        n_init=_STARTS,
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
