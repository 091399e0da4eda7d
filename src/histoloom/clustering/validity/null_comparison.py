"""k-means on the data against k-means on data without clusters: five indices and stability, with intervals.

Each draw is a set of points split into two parts; each part is clustered by itself for every k. An index is computed
in both parts; stability is how far the two clusterings agree about all points of the draw. The draws are random
subsets of the real data, and sets of the same size from each null: data without clusters that otherwise resemble the
data at hand.

This needs hundreds of clusterings of about a thousand points. So all pair distances of a part are held in memory, once
for all k (8 bytes a pair), and Ward's tree of the points starts k-means for every k.

Shapes: N points, D features, K clusters, P pairs of points, S draws; M points drawn from a null, R directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist
from scipy.stats import t as student
from sklearn import config_context
from sklearn.cluster import KMeans

from histoloom.clustering.results import Excess, NullComparison, ValueAgainstNulls
from histoloom.clustering.validity.indices import INDICES, LARGER_IS_BETTER, five_indices
from histoloom.clustering.validity.pair_distances import PairSums
from histoloom.progress import meter
from histoloom.seeding import numpy_generator

LEVEL = 0.95
STABILITY = ("agreement", "weakest")
_MOST_FEATURES = 1000  # with more, the nulls are fitted to as many points as are drawn, to bound memory and time

Measures = Mapping[str, np.ndarray | float]
"""Of one draw and k: each index in both parts, (2,), and its stability and extreme sizes."""


# --- data without clusters

Draw = Callable[[int, np.random.Generator], np.ndarray]
"""``m`` points, (M, D)."""


def gaussian_null(x_ND: np.ndarray) -> Draw:
    """Gaussian points whose own mean and covariance are those of ``x_ND``, not only in expectation.

    Mean and covariance are a sufficient statistic of Gaussian data: given these two, data drawn here have the very
    distribution of ``x_ND`` (where m = N), so that the comparison is fair however many the features. Beyond m - 1
    directions only the widest are kept.
    """
    mean_D = x_ND.mean(0)
    _, scale_R, axes_RD = np.linalg.svd(x_ND - mean_D, full_matrices=False)
    scale_R = scale_R / np.sqrt(len(x_ND))

    def draw(m: int, rng: np.random.Generator) -> np.ndarray:
        r = min(len(scale_R), m - 1)
        noise_MR = rng.standard_normal((m, r))
        frame_MR = np.linalg.qr(noise_MR - noise_MR.mean(0))[0]
        drawn_MD: np.ndarray = (frame_MR * (scale_R[:r] * np.sqrt(m))) @ axes_RD[:r] + mean_D
        return drawn_MD

    return draw


def permuted_null(x_ND: np.ndarray) -> Draw:
    """Each feature of ``x_ND`` permuted by itself: the same values in every feature, but independent; m <= N."""

    def draw(m: int, rng: np.random.Generator) -> np.ndarray:
        return np.stack([rng.permutation(column_N)[:m] for column_N in x_ND.T], axis=1)

    return draw


def components_null(x_ND: np.ndarray) -> Draw:
    """Each principal component of ``x_ND`` permuted by itself: the covariance, and the skew along its axes; m <= N."""
    mean_D = x_ND.mean(0)
    axes_RD = np.linalg.svd(x_ND - mean_D, full_matrices=False)[2]
    permuted = permuted_null((x_ND - mean_D) @ axes_RD.T)
    return lambda m, rng: permuted(m, rng) @ axes_RD + mean_D


NULLS: Mapping[str, Callable[[np.ndarray], Draw]] = {
    "gaussian": gaussian_null,
    "permuted": permuted_null,
    "components": components_null,
}


# --- one cheap clustering for each k of a sweep, and how far two clusterings agree


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
    # Of a few hundred points, checking the input takes scikit-learn longer than clustering.
    with config_context(assume_finite=True, skip_parameter_validation=True):
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


# --- the comparison


def compare(x_ND: np.ndarray, *, ks: Sequence[int], seed: int, draws: int, points: int) -> dict[int, NullComparison]:
    """The comparison for each k, from ``draws`` sets of at most ``points`` points of the data and of each null."""
    rng = numpy_generator(seed, "clusters", "nulls", "data")
    part = min(points, len(x_ND)) // 2
    if x_ND.shape[1] > _MOST_FEATURES:
        x_ND = x_ND[np.sort(rng.permutation(len(x_ND))[: 2 * part])]
    with meter("clusters against none", total=draws * (1 + len(NULLS))) as progress:

        def measured(points_MD: np.ndarray) -> dict[int, Measures]:
            progress.advance(1)
            return _measure(points_MD[:part], points_MD[part:], ks=ks)

        real = [measured(x_ND[rng.permutation(len(x_ND))[: 2 * part]]) for _ in range(draws)]
        nulls = {}
        for name, fit in NULLS.items():
            rng, draw = numpy_generator(seed, "clusters", "nulls", name), fit(x_ND)
            nulls[name] = [measured(rng.permutation(draw(2 * part, rng))) for _ in range(draws)]
    share = 2 * part / len(x_ND)
    return {
        k: _comparison(
            k,
            real=[draw[k] for draw in real],
            nulls={name: [draw[k] for draw in null] for name, null in nulls.items()},
            share=share,
        )
        for k in ks
    }


def _measure(first_ND: np.ndarray, second_ND: np.ndarray, *, ks: Sequence[int]) -> dict[int, Measures]:
    """The measures of one draw, for each k."""
    both_ND = np.concatenate([first_ND, second_ND])
    sweeps = [sweep(part_ND, ks=ks) for part_ND in (first_ND, second_ND)]
    result: dict[int, Measures] = {}
    for k in ks:
        parts = [by_k[k] for by_k in sweeps]
        agreed = agreement(*(nearest(both_ND, centres_KD=part.centres_KD) for part in parts), k=k)
        sizes = np.concatenate([part.sizes_K for part in parts]) / len(first_ND)
        result[k] = {index: np.array([part.indices[index] for part in parts]) for index in INDICES} | {
            "agreement": agreed.ari,
            "weakest": agreed.weakest,
            "smallest": float(sizes.min()),
            "largest": float(sizes.max()),
        }
    return result


def _comparison(
    k: int, *, real: Sequence[Measures], nulls: Mapping[str, Sequence[Measures]], share: float
) -> NullComparison:
    """One k; ``share`` of the data that a draw holds."""

    def values(draws: Sequence[Measures], name: str) -> np.ndarray:
        return np.array([draw[name] for draw in draws])

    def spread(value_S: np.ndarray) -> float:
        """The standard deviation among draws; an index is the mean of a draw's two parts."""
        return float(value_S.reshape(len(value_S), -1).mean(axis=1).std(ddof=1))

    def compared(name: str) -> ValueAgainstNulls:
        real_S = values(real, name)
        null_by_name = {null: values(draws, name) for null, draws in nulls.items()}
        return ValueAgainstNulls(
            real=float(real_S.mean()),
            deviation=spread(real_S),
            null={null: float(null_S.mean()) for null, null_S in null_by_name.items()},
            null_deviation={null: spread(null_S) for null, null_S in null_by_name.items()},
            excess={null: _excess(name, real_S, null_S, share=share) for null, null_S in null_by_name.items()},
        )

    return NullComparison(
        k=k,
        indices={name: compared(name) for name in INDICES},
        stability={name: compared(name) for name in STABILITY},
        smallest=float(values(real, "smallest").mean()),
        largest=float(values(real, "largest").mean()),
    )


def _excess(name: str, real_S: np.ndarray, null_S: np.ndarray, *, share: float) -> Excess:
    """Student's interval of the difference of means: of an index, (S, 2), or of a stability, (S,).

    Its variance includes that of the data themselves, which are one sample: the draws share ``share`` of them.
    """
    draws = len(real_S)
    if name in INDICES:
        # In deviations of the null's draws. How much the data vary by chance shows between a draw's two parts.
        sign = 1 if LARGER_IS_BETTER[name] else -1
        chance = float(((real_S[:, 0] - real_S[:, 1]) ** 2).mean()) / 4
        real_S, null_S = sign * real_S.mean(1), sign * null_S.mean(1)
        scale = float(null_S.std(ddof=1)) or 1.0
    else:
        # In its own unit. Each draw of the null is another data set, so the null gives the spread among data sets.
        chance, scale = float(null_S.var(ddof=1)), 1.0
    variance = share * chance + (float(real_S.var(ddof=1)) + float(null_S.var(ddof=1))) / draws
    half = float(student.ppf((1 + LEVEL) / 2, draws - 1)) * math.sqrt(variance)
    difference = float(real_S.mean() - null_S.mean())
    return Excess(value=difference / scale, low=(difference - half) / scale, high=(difference + half) / scale)
