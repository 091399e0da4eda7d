"""The classifier two-sample test: can samples be told from real patches? ``two_sample.json``, of the chosen k.

A classifier learns to tell samples from patches of some slides, and is tested on samples that it has not seen and on
patches of other slides (Lopez-Paz & Oquab 2017). It is a logistic regression on named statistics of colour, texture
and shape (``texture_features``), each as its distance from the mean of the image's cluster, so that it needs no trained
weights, learns from few images, and says by what it tells. The area under its ROC curve (AUC) is 0.5 where samples are
drawn from the distribution of the patches of the same slides.

Slides differ too. The floor is therefore the same test with real patches of further slides in the place of the samples:
the training slides are halved, one half takes the samples' part, and this is done for several halvings.

Shapes: N images, F features, C clusters, D columns of the classifier.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Self

import numpy as np
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold

from histoloom.clustering.clustering_set import Clustering
from histoloom.evaluation.images import ImageRows, SampleFolder
from histoloom.evaluation.results import Separation, TellingFeature, ToldSample, TwoSample
from histoloom.evaluation.statistics import area_interval, wilson_interval
from histoloom.evaluation.texture_features import MIN_SIDE, feature_names, strongest, texture_features
from histoloom.run.stage import StageContext
from histoloom.seeding import Part, numpy_generator
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import accelerator

FOLDS = 5
"""parts of the images that are tested, each by a classifier that learned from the others"""
FLOOR_SPLITS = 8
"""halvings of the training slides of which the floor is made"""
MIN_IMAGES = 20
"""samples, and patches on each side; with fewer nothing is measured"""
MIN_OF_CLUSTER = 10
"""samples and tested patches of a cluster; with fewer it is not compared by itself"""
MIN_SLIDES = 3
"""training slides; with fewer, the floor is made of halves of their patches"""
TELLING = 6
"""features that are named"""
_FARTHEST = 6.0  # standard deviations, beyond which a feature counts no more
_PRIOR_IMAGES = 5  # of all clusters, that each cluster's mean is drawn towards
_STRENGTHS = tuple(10.0 ** np.arange(-4, 0))  # inverse strengths of regularisation to choose from


@dataclass(frozen=True)
class FeatureSet:
    """Features (N, F) of images, each with its cluster and its group (slide; an image of its own where unknown)."""

    features_NF: np.ndarray
    clusters_N: np.ndarray
    groups_N: np.ndarray

    def __len__(self) -> int:
        return len(self.features_NF)

    def take(self, rows: np.ndarray) -> Self:
        """These rows."""
        return type(self)(self.features_NF[rows], self.clusters_N[rows], self.groups_N[rows])


@dataclass(frozen=True)
class Scores:
    """The classifier's logits (larger: synthetic) of tested real patches and of the others; their clusters.

    ``weights_F``: the mean weight of each feature's own column.
    """

    real_N: np.ndarray
    other_N: np.ndarray
    real_clusters_N: np.ndarray
    other_clusters_N: np.ndarray
    weights_F: np.ndarray

    def separation(self, cluster: int | None = None) -> Separation | None:
        """How well the two are told apart, in a cluster or over all; None where a side has too few images."""
        real_N = self.real_N if cluster is None else self.real_N[self.real_clusters_N == cluster]
        other_N = self.other_N if cluster is None else self.other_N[self.other_clusters_N == cluster]
        n, m = len(real_N), len(other_N)
        if min(n, m) < (MIN_IMAGES if cluster is None else MIN_OF_CLUSTER):
            return None
        ranks = rankdata(np.concatenate([real_N, other_N]))
        auc = float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))
        right = ((real_N < 0).sum(), (other_N >= 0).sum())
        low, high = (
            np.mean(limits) for limits in zip(wilson_interval(right[0], n), wilson_interval(right[1], m), strict=True)
        )
        return Separation(
            auc=auc,
            interval=area_interval(auc, positives=m, negatives=n),
            accuracy=float((right[0] / n + right[1] / m) / 2),
            accuracy_interval=(float(low), float(high)),
            n=(n, m),
        )


def tell_apart(learned: FeatureSet, tested: FeatureSet, others: FeatureSet, *, rng: np.random.Generator) -> Scores:
    """Scores of ``tested`` real images and of ``others``, by classifiers that learned from ``learned`` real images.

    Each image is scored by a classifier that has seen neither it nor, of the real ones, its group: ``tested`` must be
    of other groups than ``learned``. Both sides of each training have the same number of images of each cluster, as
    far as there are so many.
    """
    columns = _Columns(learned)
    learned_ND, tested_ND, others_ND = (columns.of(images) for images in (learned, tested, others))
    tested_folds, other_folds = (_folds(images.clusters_N, rng=rng) for images in (tested, others))
    tested_scores, other_scores, weights = np.zeros(len(tested)), np.zeros(len(others)), []
    for fold in range(FOLDS):
        seen = np.flatnonzero(other_folds != fold)
        real = _matching_rows(learned.clusters_N, others.clusters_N[seen], rng=rng)
        x_ND = np.concatenate([learned_ND[real], others_ND[seen]])
        y_N = np.repeat([0, 1], [len(real), len(seen)])
        classifier = LogisticRegressionCV(
            Cs=_STRENGTHS,
            cv=StratifiedKFold(3, shuffle=True, random_state=int(rng.integers(2**31))),
            class_weight="balanced",
            scoring="neg_log_loss",
            l1_ratios=(0.0,),
            max_iter=500,
            use_legacy_attributes=False,
        ).fit(x_ND, y_N)
        for scores, images_ND, folds in (
            (tested_scores, tested_ND, tested_folds),
            (other_scores, others_ND, other_folds),
        ):
            if (folds == fold).any():
                scores[folds == fold] = classifier.decision_function(images_ND[folds == fold])
        weights.append(classifier.coef_[0, : learned.features_NF.shape[1]])
    return Scores(tested_scores, other_scores, tested.clusters_N, others.clusters_N, np.mean(weights, axis=0))


class _Columns:
    """The classifier's columns: features as distances from the real mean of the cluster, and their absolute values.

    The absolute values tell images that lie around their cluster rather than on one side of it, such as samples that
    show the tissue of each other's cluster.
    """

    def __init__(self, real: FeatureSet) -> None:
        self.mean_F = real.features_NF.mean(axis=0)
        self.mean_CF: dict[int, np.ndarray] = {}
        for cluster in np.unique(real.clusters_N):
            own = real.features_NF[real.clusters_N == cluster]
            total = own.sum(axis=0) + _PRIOR_IMAGES * self.mean_F
            self.mean_CF[int(cluster)] = total / (len(own) + _PRIOR_IMAGES)
        self.spread_F = (real.features_NF - self._means(real.clusters_N)).std(axis=0) + 1e-6

    def distances(self, images: FeatureSet) -> np.ndarray:
        """Distances from the cluster's real mean in standard deviations, (N, F)."""
        distances = (images.features_NF - self._means(images.clusters_N)) / self.spread_F
        return np.clip(distances, -_FARTHEST, _FARTHEST)

    def of(self, images: FeatureSet) -> np.ndarray:
        """The columns, (N, 2 F)."""
        distances_NF = self.distances(images)
        return np.concatenate([distances_NF, np.abs(distances_NF) - 0.8], axis=1)  # 0.8: the mean of |normal|

    def _means(self, clusters_N: np.ndarray) -> np.ndarray:
        return np.stack([self.mean_CF.get(int(cluster), self.mean_F) for cluster in clusters_N])


def _folds(clusters_N: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """A fold for each image, at random; every cluster is spread over all folds."""
    folds_N = np.zeros(len(clusters_N), np.int64)
    shuffled = rng.permutation(len(clusters_N))
    order = shuffled[np.argsort(clusters_N[shuffled], kind="stable")]
    folds_N[order] = np.arange(len(order)) % FOLDS
    return folds_N


def _matching_rows(available_N: np.ndarray, wanted_M: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Random rows of ``available_N`` (clusters): as many of each cluster as in ``wanted_M``, or all there are."""
    rows = []
    for cluster, count in zip(*np.unique(wanted_M, return_counts=True), strict=True):
        rows.append(rng.permutation(np.flatnonzero(available_N == cluster))[:count])
    return np.sort(np.concatenate(rows))


def two_sample_test(
    learned: FeatureSet,
    tested: FeatureSet,
    samples: FeatureSet,
    *,
    names: Sequence[str],
    files: Sequence[str],
    seed: int,
    path: Sequence[Part],
    k: int | None = None,
) -> TwoSample:
    """Samples against real images, and the floor.

    ``learned`` and ``tested`` are real images of different groups. ``names`` are those of the features, ``files`` those
    of the samples. ``path`` names the random streams under ``seed``.
    """
    smallest = min(map(len, (learned, tested, samples)))
    if smallest < MIN_IMAGES:
        return TwoSample(k=k, note=f"it needs {MIN_IMAGES} samples and patches on each side, and there are {smallest}")

    def against_real(real: FeatureSet, others: FeatureSet, *parts: Part) -> Scores:
        rng = numpy_generator(seed, *path, *parts)
        rows = _matching_rows(tested.clusters_N, others.clusters_N, rng=rng)
        return tell_apart(real, tested.take(rows), others, rng=rng)

    scores = against_real(learned, samples, "samples")
    floors = []
    halvings = _halvings(learned.groups_N, rng=numpy_generator(seed, *path, "halvings"))
    for number, is_other_N in enumerate(halvings):
        other_rows = np.flatnonzero(is_other_N)
        rng = numpy_generator(seed, *path, "others", number)
        drawn = _matching_rows(learned.clusters_N[other_rows], samples.clusters_N, rng=rng)
        own, others = learned.take(np.flatnonzero(~is_other_N)), learned.take(other_rows[drawn])
        if min(len(own), len(others)) >= MIN_IMAGES:
            floors.append(against_real(own, others, "floor", number))
    clusters = [int(cluster) for cluster in np.unique(samples.clusters_N)]
    distances_F = np.median(_Columns(learned).distances(samples), axis=0)
    telling = strongest(np.abs(scores.weights_F) * distances_F, names, count=TELLING)
    by_name = dict(zip(names, distances_F, strict=True))
    order = np.argsort(-scores.other_N, kind="stable")
    return TwoSample(
        k=k,
        samples=scores.separation(),
        floor=_mean_separation([floor.separation() for floor in floors]),
        clusters=_by_cluster({cluster: scores.separation(cluster) for cluster in clusters}),
        floor_clusters=_by_cluster(
            {cluster: _mean_separation([floor.separation(cluster) for floor in floors]) for cluster in clusters}
        ),
        telling=tuple(TellingFeature(name=name, difference=float(by_name[name])) for name, _ in telling),
        told=tuple(ToldSample(file=files[row], score=float(1 / (1 + np.exp(-scores.other_N[row])))) for row in order),
    )


def _halvings(groups_N: np.ndarray, *, rng: np.random.Generator) -> list[np.ndarray]:
    """Which images are in the second half of the groups, bool (N,): all ways to halve them, or ``FLOOR_SPLITS``."""
    groups, group_N = np.unique(groups_N, return_inverse=True)
    if len(groups) < MIN_SLIDES:
        groups = group_N = np.arange(len(groups_N))
    n, size = len(groups), len(groups) // 2
    if math.comb(n, size) <= 2 * FLOOR_SPLITS:
        every = list(combinations(range(n), size))
        halves = [np.array(every[index]) for index in np.sort(rng.permutation(len(every))[:FLOOR_SPLITS])]
    else:
        halves = [rng.permutation(n)[:size] for _ in range(FLOOR_SPLITS)]
    return [np.isin(group_N, half) for half in halves]


def _mean_separation(separations: Sequence[Separation | None]) -> Separation | None:
    """The mean of several, with the range of all of them as the interval; None where there is none."""
    known = [separation for separation in separations if separation is not None]
    if not known:
        return None
    aucs, accuracies = [one.auc for one in known], [one.accuracy for one in known]
    return Separation(
        auc=float(np.mean(aucs)),
        interval=(min(aucs), max(aucs)),
        accuracy=float(np.mean(accuracies)),
        accuracy_interval=(min(accuracies), max(accuracies)),
        n=known[0].n,
    )


def _by_cluster(separations: Mapping[int, Separation | None]) -> dict[int, Separation]:
    return {cluster: separation for cluster, separation in separations.items() if separation is not None}


# --- the part of the stage


def write_two_sample(
    context: StageContext, *, patches: PatchSet, labels: Mapping[int, np.ndarray], samples: SampleFolder
) -> TwoSample | None:
    """Write ``two_sample.json`` of the chosen k; ``labels`` are the patches' clusters of each k, in their order.

    None where the chosen k has no samples, and then nothing is written.
    """
    k = Clustering.open(context.inputs["clusters"]).chosen
    if k not in samples.ks:
        return None
    config = context.config
    limit = config.evaluation.distribution_patches
    table = patches.columns("split", "slide", "patient")
    groups_N = table[config.patches.split.by].astype(str).to_numpy()
    sample_rows = np.concatenate(list(samples.rows(k).values()))
    sides = {
        # Twice as many to learn from, since the floor learns from half of the slides.
        "learned": (patches.rows("train"), 2 * limit),
        "tested": (patches.rows("holdout"), limit),
        "samples": (sample_rows, limit),
    }
    drawn = {
        side: rows[np.sort(numpy_generator(config.seed, "two samples", side).permutation(len(rows))[:count])]
        for side, (rows, count) in sides.items()
    }
    if patches.size < MIN_SIDE:
        result = TwoSample(k=k, note=f"it needs images of at least {MIN_SIDE} px, and they have {patches.size} px")
    elif min(map(len, drawn.values())) < MIN_IMAGES:
        fewest = min(drawn, key=lambda side: len(drawn[side]))
        what = {"learned": "training patches", "tested": "held-out patches", "samples": "samples"}[fewest]
        result = TwoSample(k=k, note=f"it needs {MIN_IMAGES} {what}, and there are {len(drawn[fewest])}")
    else:
        device = accelerator(config.runtime).device
        sets = {}
        for side, rows in drawn.items():
            reader = samples.images if side == "samples" else patches.images
            features_NF = texture_features(ImageRows(reader, rows), device=device)
            if side == "samples":
                clusters_N = samples.table["cluster"].to_numpy(np.int64)[rows]
                sets[side] = FeatureSet(features_NF, clusters_N, np.full(len(rows), "samples"))
            else:
                sets[side] = FeatureSet(features_NF, labels[k][rows], groups_N[rows])
        result = two_sample_test(
            sets["learned"],
            sets["tested"],
            sets["samples"],
            names=feature_names(patches.size, patches.mpp),
            files=[str(name) for name in samples.table["file_name"].to_numpy()[drawn["samples"]]],
            seed=config.seed,
            path=["two samples"],
            k=k,
        )
    result.save(context.out)
    return result
