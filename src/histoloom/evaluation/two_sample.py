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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Self

import numpy as np
from scipy.special import expit
from scipy.stats import norm, rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from histoloom.clustering.clustering_set import Clustering
from histoloom.evaluation.feature_cache import RUN_CACHE, cached_features
from histoloom.evaluation.images import NO_TISSUE, ImageRows, SampleFolder
from histoloom.evaluation.results import Separation, TellingFeature, ToldApart, ToldSample, TwoSample
from histoloom.evaluation.statistics import Interval, area_interval, wilson_interval
from histoloom.evaluation.telling_windows import MOST, write_telling_windows
from histoloom.evaluation.texture_features import MIN_SIDE, N_COLOUR, TextureStatistics, feature_names
from histoloom.run.stage import StageContext
from histoloom.seeding import Part, numpy_generator
from histoloom.slides.patch_set import PatchSet, Split
from histoloom.training.devices import accelerator

FOLDS = 5
"""parts of the images that are tested, each by a classifier that learned from the others"""
FLOOR_SPLITS = 8
"""halvings of the training slides of which the floor is made"""
MIN_IMAGES = 20
"""samples, and patches on each side; with fewer nothing is measured"""
MIN_OF_CLUSTER = 5
"""samples and tested patches of a cluster; with fewer it is not compared by itself"""
MIN_SLIDES = 3
"""training slides; with fewer, the floor is made of halves of their patches"""
TELLING = 6
"""features that are named"""
_FARTHEST = 6.0  # standard deviations, beyond which a feature counts no more
_PRIOR_IMAGES = 5  # of all clusters, that each cluster's mean is drawn towards
_NEAREST = 0.001  # to 0 and 1, to which a share may come on the scale of distances
_STRENGTHS = tuple(10.0 ** np.arange(-4, 0))  # inverse strengths of regularisation to choose from


@dataclass(frozen=True)
class FeatureSet:
    """Features (N, F) of images, each with its cluster and its group (slide; an image of its own where unknown)."""

    features_NF: np.ndarray
    clusters_N: np.ndarray
    groups_N: np.ndarray

    def __len__(self) -> int:
        return len(self.features_NF)

    def columns(self, columns: slice) -> Self:
        """These features."""
        return type(self)(self.features_NF[:, columns], self.clusters_N, self.groups_N)

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
        """How well the two are told apart, in a cluster or over all; None where a side has too few images.

        Over all clusters, the AUC is that of images of one cluster, mean over the clusters by their number of others:
        it does not depend on how much there is of each cluster on either side.
        """
        clusters = np.unique(self.other_clusters_N) if cluster is None else [cluster]
        aucs, n_real, n_other, right_real, right_other = [], [], [], 0, 0
        for one in clusters:
            real_N = self.real_N[self.real_clusters_N == one]
            other_N = self.other_N[self.other_clusters_N == one]
            if min(len(real_N), len(other_N)) >= MIN_OF_CLUSTER:
                ranks = rankdata(np.concatenate([real_N, other_N]))[len(real_N) :]
                aucs.append((ranks.mean() - (len(other_N) + 1) / 2) / len(real_N))
                n_real.append(len(real_N))
                n_other.append(len(other_N))
                right_real += int((real_N < 0).sum())
                right_other += int((other_N >= 0).sum())
        n, m = sum(n_real), sum(n_other)
        if not aucs or (cluster is None and min(n, m) < MIN_IMAGES):
            return None
        auc = float(np.average(aucs, weights=n_other))
        limits = wilson_interval(right_real, n), wilson_interval(right_other, m)
        low, high = (float(np.mean(pair)) for pair in zip(*limits, strict=True))
        return Separation(
            auc=auc,
            interval=area_interval(auc, positives=m, negatives=n),
            accuracy=(right_real / n + right_other / m) / 2,
            accuracy_interval=(low, high),
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
        search = GridSearchCV(
            LogisticRegression(class_weight="balanced", max_iter=500),
            {"C": _STRENGTHS},
            cv=StratifiedKFold(3, shuffle=True, random_state=int(rng.integers(2**31))),
            scoring="neg_log_loss",
        )
        classifier = search.fit(x_ND, y_N).best_estimator_
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


def _n_matching(available_N: np.ndarray, wanted_M: np.ndarray) -> int:
    """How many rows ``_matching_rows`` finds."""
    clusters, counts = np.unique(wanted_M, return_counts=True)
    return int(np.minimum(counts, [(available_N == cluster).sum() for cluster in clusters]).sum())


def two_sample_test(
    learned: FeatureSet,
    tested: FeatureSet,
    samples: FeatureSet,
    *,
    others: FeatureSet | None = None,
    names: Sequence[str],
    files: Sequence[str],
    seed: int,
    path: Sequence[Part],
    k: int | None = None,
) -> TwoSample:
    """Samples against real images, by texture and by colour, each with its floor.

    ``learned`` and ``tested`` are real images of different groups. The floor takes halves of the groups of ``learned``,
    or ``others``, real images of further groups, where they are given. ``names`` are those of the features, ``files``
    those of the samples. ``path`` names the random streams under ``seed``.
    """
    smallest = min(len(images) for images in (learned, tested, samples, others) if images is not None)
    if smallest < MIN_IMAGES:
        return TwoSample(k=k, note=f"it needs {MIN_IMAGES} images on each side, and there are {smallest}")

    common = _n_matching(learned.clusters_N, samples.clusters_N)
    if common < MIN_IMAGES:
        return TwoSample(k=k, note=f"it needs {MIN_IMAGES} patches of the samples' clusters, and there are {common}")

    aspects, told = {}, np.empty(0)
    for aspect, columns in (("texture", slice(N_COLOUR, None)), ("colour", slice(0, N_COLOUR))):
        own, real, synthetic = (images.columns(columns) for images in (learned, tested, samples))
        rng = numpy_generator(seed, *path, aspect, "samples")
        scores = tell_apart(own, real, synthetic, rng=rng)
        floors = []
        pairs = _floor_pairs(
            own,
            synthetic,
            others=None if others is None else others.columns(columns),
            rng=numpy_generator(seed, *path, aspect, "halvings"),
        )
        for number, (first, second) in enumerate(pairs):
            floor_rng = numpy_generator(seed, *path, aspect, "floor", number)
            floors.append(tell_apart(first, real, second, rng=floor_rng))
        aspects[aspect] = _told_apart(scores, floors, own, synthetic, names=names[columns])
        if aspect == "texture":
            told = scores.other_N
    order = np.argsort(-told, kind="stable")
    return TwoSample(
        k=k,
        texture=aspects["texture"],
        colour=aspects["colour"],
        told=tuple(ToldSample(file=files[row], score=float(expit(told[row]))) for row in order),
    )


def _told_apart(
    scores: Scores, floors: Sequence[Scores], learned: FeatureSet, samples: FeatureSet, *, names: Sequence[str]
) -> ToldApart:
    """The result by one kind of features."""
    floor = _floor([one.separation() for one in floors])
    by_cluster: dict[int, Separation] = {}
    floor_by_cluster: dict[int, Separation] = {}
    for cluster in np.unique(samples.clusters_N).tolist():
        separation = scores.separation(cluster)
        floor_of_cluster = _floor([one.separation(cluster) for one in floors], common=floor)
        by_cluster |= {} if separation is None else {cluster: separation}
        floor_by_cluster |= {} if floor_of_cluster is None else {cluster: floor_of_cluster}
    distances_F = np.median(_Columns(learned).distances(samples), axis=0)
    order = np.argsort(-np.abs(scores.weights_F * distances_F), kind="stable")[:TELLING]
    return ToldApart(
        samples=scores.separation(),
        floor=floor,
        clusters=by_cluster,
        floor_clusters=floor_by_cluster,
        telling=tuple(TellingFeature(name=names[index], difference=float(distances_F[index])) for index in order),
    )


def _floor_pairs(
    learned: FeatureSet, samples: FeatureSet, *, others: FeatureSet | None, rng: np.random.Generator
) -> Iterator[tuple[FeatureSet, FeatureSet]]:
    """Real images to learn from and real images in the place of the samples, as many of each cluster as these."""
    halvings = _halvings((learned if others is None else others).groups_N, rng=rng)
    for is_second_N in halvings:
        second = np.flatnonzero(is_second_N)
        source = learned if others is None else others
        drawn = second[_matching_rows(source.clusters_N[second], samples.clusters_N, rng=rng)]
        first = learned if others is not None else learned.take(np.flatnonzero(~is_second_N))
        if _n_matching(first.clusters_N, source.clusters_N[drawn]) >= MIN_IMAGES:
            yield first, source.take(drawn)


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


def _floor(separations: Sequence[Separation | None], *, common: Separation | None = None) -> Separation | None:
    """The mean of the floor's halvings, with their range as its interval; None where there is none.

    A cluster has too few images for a range of its own. It takes that of ``common``, the floor over all clusters,
    moved to its mean; on the scale of the distance of two normal distributions with this AUC, which is the same near
    0.5 and near 1.
    """
    known = [separation for separation in separations if separation is not None]
    if not known:
        return None

    aucs, accuracies = [one.auc for one in known], [one.accuracy for one in known]
    if common is None:
        auc, auc_range = _mean_and_range(aucs)
        accuracy, accuracy_range = _mean_and_range(accuracies)
    else:
        auc, auc_range = _mean_and_range(aucs, around=(common.auc, common.interval))
        accuracy, accuracy_range = _mean_and_range(accuracies, around=(common.accuracy, common.accuracy_interval))
    return Separation(auc=auc, interval=auc_range, accuracy=accuracy, accuracy_interval=accuracy_range, n=known[0].n)


def _mean_and_range(shares: Sequence[float], *, around: tuple[float, Interval] | None = None) -> tuple[float, Interval]:
    """The mean of the shares and their range, or that range around its own mean; on the scale of ``_distance``."""
    distances = _distance(np.array(shares))
    mean, low, high = distances.mean(), distances.min(), distances.max()
    if around is not None:
        middle, ends = _distance(np.array(around[0])), _distance(np.array(around[1]))
        low, high = mean + ends - middle
    return float(norm.cdf(mean)), (float(norm.cdf(low)), float(norm.cdf(high)))


def _distance(shares: np.ndarray) -> np.ndarray:
    """The quantiles of the normal distribution at shares in 0..1; those of 0 and 1 are kept finite."""
    return norm.ppf(np.clip(shares, _NEAREST, 1 - _NEAREST))


# --- the part of the stage


def write_two_sample(
    context: StageContext, *, patches: PatchSet, labels: Mapping[int, np.ndarray], samples: SampleFolder
) -> None:
    """Write ``two_sample.json`` of the chosen k; ``labels`` are the patches' clusters of each k, in their order.

    Nothing is written where the chosen k has no samples.
    """
    k = Clustering.open(context.inputs["clusters"]).chosen
    if k not in samples.ks:
        return
    config = context.config
    limit = config.evaluation.distribution_patches
    sample_rows = np.concatenate(list(samples.rows(k).values()))

    def tissue_rows(split: Split) -> np.ndarray:
        rows = patches.rows(split)
        return rows[labels[k][rows] != NO_TISSUE]

    sides = {
        # Twice as many to learn from, since the floor learns from half of the slides.
        "learned": (tissue_rows("train"), 2 * limit),
        "tested": (tissue_rows("holdout"), limit),
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
        extractor = TextureStatistics(accelerator(config.runtime).device)
        sets = {}
        for side, rows in drawn.items():
            reader = samples.images if side == "samples" else patches.images
            source, cache = ImageRows(reader, rows), context.run / RUN_CACHE
            features_NF = cached_features(source, extractor=extractor, cache=cache, what=side)
            if side == "samples":
                clusters_N = samples.table["cluster"].to_numpy(np.int64)[rows]
                sets[side] = FeatureSet(features_NF, clusters_N, np.full(len(rows), side))
            else:
                group = config.patches.split.by
                groups_N = patches.columns(group, rows=rows)[group].astype(str).to_numpy()
                sets[side] = FeatureSet(features_NF, labels[k][rows], groups_N)
        files = [str(name) for name in samples.table["file_name"].to_numpy()[drawn["samples"]]]
        result = two_sample_test(
            sets["learned"],
            sets["tested"],
            sets["samples"],
            names=feature_names(patches.size, patches.mpp),
            files=files,
            seed=config.seed,
            path=["two samples"],
            k=k,
        )
        texture = result.texture
        if texture and texture.samples and texture.floor and texture.samples.interval[0] > texture.floor.interval[1]:
            row_of = dict(zip(files, drawn["samples"], strict=True))
            names = [sample.file for sample in result.told[:MOST]]
            told = np.array([row_of[name] for name in names])
            real = numpy_generator(config.seed, "two samples", "windows").permutation(drawn["learned"])[:MOST]
            write_telling_windows(
                context.out,
                real_NSS3=patches.images(np.sort(real)),
                samples_MSS3=samples.images(told),
                clusters_M=samples.table["cluster"].to_numpy(np.int64)[told],
                files=names,
                extractor=extractor,
            )
    result.save(context.out)
