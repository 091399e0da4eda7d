"""One cheap clustering for each k of a sweep, its five indices, and how far the clusters of two parts agree.

The comparison with null data needs hundreds of clusterings of about a thousand points. So all pair distances are held
here, once for all k (8 bytes a pair), and Ward's tree of the points starts k-means for every k.

Legend of shapes: N points, D features, K clusters, P pairs of points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist
from sklearn.cluster import KMeans

from histoloom.clustering.validity.indices import five_indices
from histoloom.clustering.validity.pair_distances import PairSums


class Pairs:
    """All pair distances of some points, for the indices of any number of their clusterings (design.md, 4)."""

    def __init__(self, x_ND: np.ndarray) -> None:
        self.x_ND = x_ND - x_ND.mean(0)
        self.distances_P = pdist(self.x_ND)
        self.first_P, self.second_P = np.triu_indices(len(x_ND), 1)
        self.sums_P = np.concatenate([[0.0], np.cumsum(np.sort(self.distances_P))])

    def indices(self, labels_N: np.ndarray) -> dict[str, float]:
        """The five indices by name, as ``validity_indices`` defines them; for labels 0..k-1 without empty clusters."""
        same_P = labels_N[self.first_P] == labels_N[self.second_P]
        inside_P, across_P = self.distances_P[same_P], self.distances_P[~same_P]
        n_within = len(inside_P)
        pairs = PairSums(
            within=float(inside_P.sum()),
            between=float(across_P.sum()),
            n_within=n_within,
            n_between=len(across_P),
            smallest=self.sums_P[n_within],
            largest=self.sums_P[-1] - self.sums_P[-1 - n_within],
            nearest_between=across_P.min(),
            farthest_within=inside_P.max(),
        )
        # Sums of squares of centred points: the one between clusters from their means, the one within as the rest
        sizes_K = np.bincount(labels_N)
        sums_KD = np.zeros((len(sizes_K), self.x_ND.shape[1]))
        np.add.at(sums_KD, labels_N, self.x_ND)
        between = float(((sums_KD**2).sum(1) / sizes_K).sum())
        within = float((self.x_ND**2).sum()) - between
        indices = five_indices(pairs, n=len(labels_N), k=len(sizes_K), within=within, between=between)
        return {name: float(value) for name, value in indices.items()}


@dataclass(frozen=True)
class Part:
    """One k on one part of the data: its centres (K, D), the five indices, and the sizes of the clusters."""

    centres_KD: np.ndarray
    indices: dict[str, float]
    sizes_K: np.ndarray


def sweep(x_ND: np.ndarray, *, ks: Sequence[int]) -> dict[int, Part]:
    """k-means for every k, started from Ward's tree (Ward 1963); needs no seed."""
    pairs = Pairs(x_ND)
    tree = linkage(pairs.distances_P, method="ward")
    parts = {}
    for k in ks:
        start_N = cut(tree, k=k)
        starts_KD = np.stack([x_ND[start_N == cluster].mean(0) for cluster in range(k)])
        model = KMeans(n_clusters=k, init=starts_KD, n_init=1, max_iter=50).fit(x_ND)
        labels_N = np.unique(model.labels_, return_inverse=True)[1]
        sizes_K = np.bincount(model.labels_, minlength=k)
        parts[k] = Part(model.cluster_centers_, pairs.indices(labels_N), sizes_K)
    return parts


def cut(tree: np.ndarray, *, k: int) -> np.ndarray:
    """Labels 0..k-1 before the last k - 1 merges; exactly k also where distances tie, unlike SciPy's ``fcluster``."""
    n = len(tree) + 1
    root = np.arange(2 * n - 1)
    merged = tree[: n - k, :2].astype(int)
    root[merged] = n + np.arange(n - k)[:, None]
    while not np.array_equal(root, higher := root[root]):
        root = higher
    return np.unique(root[:n], return_inverse=True)[1]


def nearest(x_ND: np.ndarray, *, centres_KD: np.ndarray) -> np.ndarray:
    """The nearest centre of each point, (N,)."""
    return np.argmin((centres_KD**2).sum(1) - 2 * x_ND @ centres_KD.T, axis=1)


@dataclass(frozen=True)
class Agreement:
    """Of two clusterings: the adjusted Rand index, and the Jaccard index of the cluster that they agree least about."""

    ari: float
    weakest: float


def agreement(first_N: np.ndarray, second_N: np.ndarray, *, k: int) -> Agreement:
    """How far two clusterings with labels 0..k-1 agree, whatever the numbers of their clusters."""
    shared_KK = np.bincount(first_N * k + second_N, minlength=k * k).reshape(k, k)
    rows_K, columns_K = shared_KK.sum(1), shared_KK.sum(0)
    union_KK = rows_K[:, None] + columns_K[None, :] - shared_KK
    jaccard_KK = shared_KK / np.maximum(union_KK, 1)
    weakest = min(jaccard_KK.max(1).min(), jaccard_KK.max(0).min())

    # The adjusted Rand index (Hubert and Arabie 1985), from the numbers of pairs that the clusterings share
    together, first, second, n_pairs = (
        float((n * (n - 1.0) / 2).sum()) for n in (shared_KK, rows_K, columns_K, shared_KK.sum())
    )
    expected = first * second / n_pairs
    possible = (first + second) / 2 - expected
    ari = 1.0 if possible == 0 else (together - expected) / possible
    return Agreement(ari, float(weakest))


def agreement_of_restarts(restarts: Sequence[Mapping[int, np.ndarray]]) -> dict[int, list[float]]:
    """For each k, the adjusted Rand index of every two of ``restarts``, which hold labels (N,) by k."""
    pairs = list(combinations(restarts, 2))
    return {k: [agreement(a[k], b[k], k=k).ari for a, b in pairs] for k in restarts[0]} if pairs else {}
