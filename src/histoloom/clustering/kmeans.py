"""k-means, the baseline that information maximisation has to beat (Lloyd 1982; Arthur and Vassilvitskii 2007)."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans

from histoloom.seeding import derive

STARTS = 4


def kmeans_labels(x_ND: np.ndarray, *, k: int, seed: int) -> np.ndarray:
    """Labels 0..k-1, the best of ``STARTS`` seeded starts by inertia; numbered by falling size.

    Features are taken as they are: on pooled latents, giving every feature the same deviation first made the agreement
    with true tissue worse.
    """
    model = KMeans(n_clusters=k, n_init=STARTS, random_state=derive(seed, "kmeans", k) % 2**32)
    return by_falling_size(model.fit_predict(x_ND), k=k)


def by_falling_size(labels_N: np.ndarray, *, k: int) -> np.ndarray:
    """The same clusters, numbered so that cluster 0 is the largest."""
    order_K = np.argsort(-np.bincount(labels_N, minlength=k), kind="stable")
    number_K = np.empty(k, dtype=np.int64)
    number_K[order_K] = np.arange(k)
    return number_K[labels_N]
