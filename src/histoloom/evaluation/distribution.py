"""Sets of images compared by their features: ``distribution.json`` of the stage ``evaluation``.

Real are held-out patches, and the floor is patches of the training slides against them. Where too few are held out,
real are training patches, and the floor is a random half of them against the other.

Samples hold about the same number of every cluster, real patches do not. Compared as they are, sets would differ by how
much there is of each tissue, whatever the samples look like. Over all clusters, both the samples and the floor's
patches therefore have every cluster in its share of the real patches, in equal numbers, and the numbers are the mean
over ``DRAWS`` such draws. Legend of shapes: N patches, M samples, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from histoloom.evaluation.extractors import Extractor, ExtractorSources, make_extractors
from histoloom.evaluation.feature_cache import RUN_CACHE, cached_features
from histoloom.evaluation.images import ImageRows, SampleFolder
from histoloom.evaluation.results import Distribution, DistributionEntry, SetComparison
from histoloom.evaluation.set_metrics import SET_METRICS, SetMetric
from histoloom.evaluation.statistics import Estimate
from histoloom.run.stage import StageContext
from histoloom.seeding import Part, numpy_generator
from histoloom.slides.patch_set import PatchSet
from histoloom.training.devices import resolve_device

MIN_IMAGES = 10
"""with fewer on a side, sets are not compared"""
MIN_OF_CLUSTER = 20
"""patches and samples of a cluster; with fewer it is not compared by itself"""
FEW = 50
"""images; with fewer a note says that they are few"""
DRAWS = 4
FLOORS = {"holdout": "patches of the training slides", "train": "random halves of the training patches"}

FeaturePair = tuple[np.ndarray, np.ndarray]
"""Features of a real set (N, D) and of the set that is compared with it (M, D)."""
ClusterRows = Mapping[int, np.ndarray]
"""The rows of each cluster."""


# --- two sets of features


def compare_sets(
    pairs: Sequence[FeaturePair], floors: Sequence[FeaturePair], *, extractor: str, seed: int, path: Sequence[Part]
) -> list[SetComparison]:
    """Every set metric of real and synthetic features, each with its floor.

    ``pairs`` are real and synthetic, ``floors`` real and other real images: equal draws of the same sets, over which
    values and limits are averaged. ``path`` names the random stream of the intervals under ``seed``.
    """

    def mean_estimates(metric: SetMetric, draws: Sequence[FeaturePair], what: str) -> dict[str, Estimate]:
        estimates = []
        for number, (real_ND, other_MD) in enumerate(draws):
            rng = numpy_generator(seed, *path, extractor, what, *metric.values, number)
            estimates.append(metric.estimate(real_ND, other_MD, rng=rng))
        means = {}
        for name in metric.values:
            columns = zip(*((one[name].value, *one[name].interval) for one in estimates), strict=True)
            value, low, high = (float(np.mean(column)) for column in columns)
            means[name] = Estimate(value, (low, high))
        return means

    comparisons = []
    for metric in SET_METRICS:
        values = mean_estimates(metric, pairs, "value")
        floor_values = mean_estimates(metric, floors, "floor")
        for name, better in metric.values.items():
            value, floor = values[name], floor_values[name]
            comparisons.append(
                SetComparison(
                    # A Frechet distance is FID on Inception's features, and on no others.
                    metric="fid" if name == "frechet" and extractor.startswith("inception") else name,
                    extractor=extractor,
                    value=value.value,
                    interval=value.interval,
                    floor=floor.value,
                    floor_interval=floor.interval,
                    better=better,
                    n_real=len(pairs[0][0]),
                    n_synthetic=len(pairs[0][1]),
                    n_floor=(len(floors[0][0]), len(floors[0][1])),
                    notes=tuple(_notes(metric, pairs[0], floors[0])),
                )
            )
    return comparisons


def _notes(metric: SetMetric, pair: FeaturePair, floor: FeaturePair) -> list[str]:
    """What a reader of the numbers has to know, in whole sentences."""
    notes = []
    n, dimension = min(map(len, pair)), pair[0].shape[1]
    if n < FEW:
        notes.append(f"{n} images are few: the interval says how uncertain the number is.")
    if metric.fits_covariance and n <= dimension:
        notes.append(
            f"{n} images are too few for {dimension:,} features: the distance is too large, by an amount that depends "
            "on the number of images; compare it only with its floor, never with that of another number of images."
        )
    if metric.fits_covariance and min(map(len, floor)) < 0.8 * n:
        notes.append("The floor has fewer images than the value, which makes it larger.")
    return notes


# --- which rows are compared


@dataclass(frozen=True)
class RealRows:
    """Rows of real patches: samples, and as the floor the ``floor`` rows, are compared with the ``target`` rows."""

    split: Literal["holdout", "train"]
    target: np.ndarray
    floor: np.ndarray


def choose_real_rows(splits: np.ndarray, *, most: int, seed: int) -> RealRows:
    """At most ``most`` rows on each side, drawn at random from the splits of all patches."""
    held_out, train = (
        numpy_generator(seed, "evaluation", "distribution", split).permutation(np.flatnonzero(splits == split))
        for split in ("holdout", "train")
    )
    if len(held_out) >= 2 * MIN_IMAGES:
        return RealRows("holdout", np.sort(held_out[:most]), np.sort(train[:most]))
    half = min(most, len(train) // 2)
    return RealRows("train", np.sort(train[:half]), np.sort(train[half : 2 * half]))


def rows_by_cluster(labels: np.ndarray, *, rows: np.ndarray) -> dict[int, np.ndarray]:
    """``rows`` by their cluster; ``labels`` are those of all rows."""
    clusters = labels[rows]
    return {int(cluster): rows[clusters == cluster] for cluster in np.unique(clusters)}


def cluster_shares(real: ClusterRows, *, clusters: Sequence[int]) -> dict[int, float]:
    """The share of each of these clusters among the real rows of all of them."""
    sizes = {cluster: len(real.get(cluster, ())) for cluster in clusters}
    total = max(1, sum(sizes.values()))
    return {cluster: size / total for cluster, size in sizes.items()}


def cluster_quotas(shares: Mapping[int, float], *, available: ClusterRows, most: int | None = None) -> dict[int, int]:
    """Rows of each cluster of the largest set, of at most ``most`` rows, that has these shares and repeats no row.

    Counts are whole numbers: shares times the set's size, rounded down; what is missing goes to the largest remainders.
    """
    limits = [len(available.get(cluster, ())) / share for cluster, share in shares.items() if share > 0]
    size = int(min([*limits, *([most] if most is not None else [])], default=0))
    exact = {cluster: share * size for cluster, share in shares.items()}
    counts = {cluster: int(value) for cluster, value in exact.items()}
    by_remainder = sorted(exact, key=lambda cluster: (counts[cluster] - exact[cluster], cluster))
    for cluster in by_remainder[: size - sum(counts.values())]:
        counts[cluster] = min(counts[cluster] + 1, len(available.get(cluster, ())))
    return counts


def draw_rows(available: ClusterRows, *, quotas: Mapping[int, int], rng: np.random.Generator) -> np.ndarray:
    """Rows without replacement, sorted: of each cluster its quota, or all where there are fewer."""
    parts = [
        rng.choice(available[cluster], size=min(count, len(available[cluster])), replace=False)
        for cluster, count in sorted(quotas.items())
        if count and cluster in available
    ]
    return np.sort(np.concatenate([np.empty(0, np.int64), *parts])).astype(np.int64)


# --- the comparisons of one k


@dataclass(frozen=True)
class SetFeatures:
    """Features of the chosen ``real_rows``, which rise, (n, D), and of all samples, (M, D)."""

    extractor: str
    real_rows: np.ndarray
    real_nD: np.ndarray
    synthetic_MD: np.ndarray

    def real(self, rows: np.ndarray) -> np.ndarray:
        """Of some of the chosen rows."""
        return self.real_nD[np.searchsorted(self.real_rows, rows)]


def distribution_entries(
    features: SetFeatures, *, real: RealRows, labels: np.ndarray, samples: ClusterRows, k: int, seed: int
) -> list[DistributionEntry]:
    """The comparisons over all clusters of ``k``, and of each cluster that has enough patches and samples.

    ``labels`` are the clusters of all patches, ``samples`` the rows of samples of each cluster.
    """
    target, floor = (rows_by_cluster(labels, rows=rows) for rows in (real.target, real.floor))
    none = np.empty(0, np.int64)
    path: tuple[Part, ...] = ("evaluation", "distribution", k)

    def draws(available: ClusterRows, what: str) -> list[np.ndarray]:
        rngs = (numpy_generator(seed, *path, what, number) for number in range(DRAWS))
        return [draw_rows(available, quotas=quotas, rng=rng) for rng in rngs]

    # Of all clusters (None) and of each: target rows, draws of sample rows, draws of floor rows.
    sets: dict[int | None, tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]] = {}
    shares = cluster_shares(target, clusters=sorted(samples))
    quotas = cluster_quotas(shares, available=samples)
    all_target = np.sort(np.concatenate([none, *(target[c] for c in sorted(shares) if c in target)])).astype(np.int64)
    sets[None] = all_target, draws(samples, "samples"), draws(floor, "floor")
    for cluster, sample_rows in sorted(samples.items()):
        target_rows, floor_rows = target.get(cluster, none), floor.get(cluster, none)
        if min(len(target_rows), len(floor_rows), len(sample_rows)) >= MIN_OF_CLUSTER:
            n = min(len(sample_rows), len(floor_rows))
            # Every slide in its share: rows are in the order of slides.
            spread = np.linspace(0, len(floor_rows) - 1, n).round().astype(np.int64)
            sets[cluster] = target_rows, [sample_rows[:n]], [floor_rows[spread]]

    entries = []
    for one, (target_rows, synthetic_draws, floor_draws) in sets.items():
        if min(map(len, (target_rows, *synthetic_draws, *floor_draws))) < MIN_IMAGES:
            continue
        target_ND = features.real(target_rows)
        comparisons = compare_sets(
            [(target_ND, features.synthetic_MD[rows]) for rows in synthetic_draws],
            [(target_ND, features.real(rows)) for rows in floor_draws],
            extractor=features.extractor,
            seed=seed,
            path=[*path, str(one)],
        )
        entries += [
            DistributionEntry(
                k=k,
                cluster=one,
                real_split=real.split,
                floor_from=FLOORS[real.split],
                draws=len(synthetic_draws),
                **dict(comparison),
            )
            for comparison in comparisons
        ]
    return entries


# --- the part of the stage


def write_distribution(
    context: StageContext, *, patches: PatchSet, labels: Mapping[int, np.ndarray], samples: SampleFolder
) -> None:
    """Write ``distribution.json``; ``labels`` are the patches' clusters of each k, in their order."""
    config = context.config
    device = torch.device(resolve_device(config.runtime.device))
    sources = ExtractorSources(device, autoencoder=context.inputs.get("autoencoder"), download=True)
    extractors, missing = make_extractors(config.evaluation.extractors, sources=sources, size=patches.size)
    for name, reason in missing.items():
        context.say(f"no distances by {name}: {reason}")
    splits = patches.columns("split")["split"].to_numpy()
    real = choose_real_rows(splits, most=config.evaluation.distribution_patches, seed=config.seed)

    entries: list[DistributionEntry] = []
    for extractor in extractors:
        features = _features(context, extractor=extractor, patches=patches, samples=samples, real=real)
        for k in samples.ks:
            entries += distribution_entries(
                features, real=real, labels=labels[k], samples=samples.rows(k), k=k, seed=config.seed
            )
    result = Distribution(entries=tuple(entries), missing=missing)
    result.save(context.out)

    for k in samples.ks:
        distances = [
            f"{entry.metric} by {entry.extractor} {entry.value:.4g} (real against real {entry.floor:.4g})"
            for entry in result.select(k=k)
            if entry.metric in ("frechet", "fid", "kid")
        ]
        context.say(f"k = {k}: {', '.join(distances) or 'too few samples or real patches to compare distributions'}")


def _features(
    context: StageContext, *, extractor: Extractor, patches: PatchSet, samples: SampleFolder, real: RealRows
) -> SetFeatures:
    """Features of the chosen real rows and of all samples, from the run's cache where it has them."""
    rows = np.union1d(real.target, real.floor)
    sources = (
        (ImageRows(patches.images, rows), "real patches"),
        (ImageRows(samples.images, np.arange(len(samples))), "samples"),
    )
    real_nD, synthetic_MD = (
        cached_features(images, extractor=extractor, cache=context.run / RUN_CACHE, what=what)
        for images, what in sources
    )
    return SetFeatures(extractor.name, rows, real_nD, synthetic_MD)
