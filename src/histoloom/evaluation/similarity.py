"""Similarity of pairs of images, cluster by cluster: ``similarity.json`` of the stage ``evaluation``.

A sample is compared with real patches of its cluster; the floor is two real patches of the cluster on different slides,
the other end a sample and a real patch of another cluster. Shapes: L and R images on the two sides, P pairs. Pairs are
(P, 2) int64: an index on the left, one on the right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from histoloom.evaluation.images import SampleFolder
from histoloom.evaluation.pair_metrics import PairMetric, PairMetricSettings, Values, make_metrics, measure
from histoloom.evaluation.results import ComparisonKind, Similarity, SimilarityEntry
from histoloom.evaluation.statistics import bootstrap_interval
from histoloom.progress import meter
from histoloom.run.directory import read_json, write_json
from histoloom.run.stage import StageContext
from histoloom.seeding import numpy_generator
from histoloom.slides.patch_set import PatchSet, Split
from histoloom.training.devices import resolve_device

PARTIAL = "partial"
"""folder of the entries of each k, so that a killed call is continued"""
MIN_HELD_OUT = 8
"""patches; with fewer held-out ones, training patches are the real side"""

Pairs = NDArray[np.int64]


# --- pairs: seeded, drawn uniformly from all that are allowed, each at most once


def all_pairs(left: int, right: int, *, count: int, rng: np.random.Generator) -> Pairs:
    """``count`` distinct pairs, or all where there are fewer, of ``left`` by ``right`` images."""
    return pairs_across(np.zeros(left, np.int64), np.ones(right, np.int64), count=count, rng=rng)


def pairs_across(
    left_groups_L: Sequence[object] | np.ndarray,
    right_groups_R: Sequence[object] | np.ndarray,
    *,
    count: int,
    rng: np.random.Generator,
) -> Pairs:
    """``count`` distinct pairs whose two images are of different groups, or all such pairs where there are fewer.

    Uniform over the allowed pairs, without listing them.
    """
    codes = np.unique(np.concatenate([np.asarray(left_groups_L), np.asarray(right_groups_R)]), return_inverse=True)[1]
    left_L, right_R = codes[: len(left_groups_L)], codes[len(left_groups_L) :]

    # The images on the right, sorted by group: those of an image's own group are a span of them.
    order_R = np.argsort(right_R, kind="stable")
    starts_L = np.searchsorted(right_R, left_L, side="left", sorter=order_R)
    sizes_L = np.searchsorted(right_R, left_L, side="right", sorter=order_R) - starts_L
    ends_L = np.cumsum(len(right_R) - sizes_L)
    total = int(ends_L[-1]) if len(ends_L) else 0
    if total == 0:
        return np.empty((0, 2), np.int64)

    # Allowed pairs are numbered by the left image, then by the right one with the left image's own group cut out.
    drawn_P = rng.choice(total, size=min(count, total), replace=False)
    left_P = np.searchsorted(ends_L, drawn_P, side="right")
    partner_P = drawn_P - (ends_L[left_P] - (len(right_R) - sizes_L[left_P]))
    partner_P = partner_P + np.where(partner_P >= starts_L[left_P], sizes_L[left_P], 0)
    return np.stack([left_P, order_R[partner_P]], axis=1).astype(np.int64)


def real_pairs(
    rows: np.ndarray, others: np.ndarray, *, slides: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[Pairs, bool]:
    """Pairs of real patches of different slides, as rows, and whether they had to be of the same slide.

    ``rows`` are compared with ``others`` (the two may overlap); ``slides`` gives each row's slide. Only where all of
    them lie in one slide are two different patches of it paired. A pair and its mirror image count once.
    """
    pairs = pairs_across(slides[rows], slides[others], count=2 * count, rng=rng)
    same_slide = len(pairs) == 0
    if same_slide:
        pairs = pairs_across(rows, others, count=2 * count, rng=rng)
    pairs = np.stack([rows[pairs[:, 0]], others[pairs[:, 1]]], axis=1)
    first = np.unique(np.sort(pairs, axis=1), axis=0, return_index=True)[1]
    return pairs[np.sort(first)][:count], same_slide and len(first) > 0


def disjoint_pairs(n: int, *, count: int, rng: np.random.Generator) -> Pairs:
    """At most ``count`` pairs of ``n`` images in which no image comes twice."""
    shuffled = rng.permutation(n)[: 2 * min(count, n // 2)]
    return shuffled.reshape(-1, 2).astype(np.int64)


# --- the comparisons of one k


@dataclass(frozen=True)
class RealPatches:
    """All real patches under one k, by row: cluster, split and slide of each."""

    labels: np.ndarray
    splits: np.ndarray
    slides: np.ndarray

    def real_side(self, candidates: np.ndarray) -> tuple[np.ndarray, Split]:
        """The rows among ``candidates`` (bool) to compare with, and their split: held-out ones where enough."""
        held_out = np.flatnonzero(candidates & (self.splits == "holdout"))
        if len(held_out) >= MIN_HELD_OUT:
            return held_out, "holdout"
        return np.flatnonzero(candidates & (self.splits == "train")), "train"


@dataclass(frozen=True)
class PairSet:
    """The pairs of one comparison of one cluster; samples or real patches are on the left, real patches on the right.

    ``same_slide``: real patches of one slide had to be paired.
    """

    cluster: int
    comparison: ComparisonKind
    pairs: Pairs
    real_split: Split
    same_slide: bool = False


def pair_sets(
    patches: RealPatches, *, samples: Mapping[int, np.ndarray], k: int, count: int, seed: int
) -> list[PairSet]:
    """The pairs to compare of every cluster that has samples; ``samples`` are the rows of each cluster's samples."""
    sets = []
    for cluster, synthetic in sorted(samples.items()):
        own = patches.labels == cluster
        rows, split = patches.real_side(own)
        other_rows, other_split = patches.real_side(~own)

        def rng(comparison: ComparisonKind, cluster: int = cluster) -> np.random.Generator:
            return numpy_generator(seed, "evaluation", "pairs", k, cluster, comparison)

        with_own = _row_pairs(synthetic, rows, count=count, rng=rng("synthetic_real"))
        with_other = _row_pairs(synthetic, other_rows, count=count, rng=rng("synthetic_other"))
        real, same_slide = real_pairs(
            rows, np.flatnonzero(own), slides=patches.slides, count=count, rng=rng("real_real")
        )
        sets += [
            PairSet(cluster, "synthetic_real", with_own, split),
            PairSet(cluster, "real_real", real, split, same_slide=same_slide),
            PairSet(cluster, "synthetic_other", with_other, other_split),
        ]
    return [pair_set for pair_set in sets if len(pair_set.pairs)]


def _row_pairs(left: np.ndarray, right: np.ndarray, *, count: int, rng: np.random.Generator) -> Pairs:
    pairs = all_pairs(len(left), len(right), count=count, rng=rng)
    return np.stack([left[pairs[:, 0]], right[pairs[:, 1]]], axis=1)


def similarity_entries(
    sets: Sequence[PairSet],
    values: Sequence[Mapping[str, Values]],
    *,
    metrics: Sequence[PairMetric],
    k: int,
    seed: int,
    resamples: int,
) -> list[SimilarityEntry]:
    """An entry for each cluster, comparison and metric, and over all clusters (None), where every pair counts the same.

    ``values`` are those of the ``sets``, by metric.
    """
    measured = list(zip(sets, values, strict=True))
    groups: list[tuple[int | None, ComparisonKind, list[tuple[PairSet, Mapping[str, Values]]]]] = [
        (pair_set.cluster, pair_set.comparison, [(pair_set, by_metric)]) for pair_set, by_metric in measured
    ]
    for comparison in dict.fromkeys(pair_set.comparison for pair_set in sets):
        groups.append((None, comparison, [one for one in measured if one[0].comparison == comparison]))

    entries = []
    for cluster, comparison, group in groups:
        splits = {pair_set.real_split for pair_set, _ in group}
        real_split: Literal["holdout", "train", "mixed"] = splits.pop() if len(splits) == 1 else "mixed"
        for metric in metrics:
            values_P = np.concatenate([by_metric[metric.name] for _, by_metric in group])
            rng = numpy_generator(seed, "evaluation", "bootstrap", k, str(cluster), comparison, metric.name)
            entries.append(
                SimilarityEntry(
                    k=k,
                    cluster=cluster,
                    comparison=comparison,
                    metric=metric.name,
                    value=float(values_P.mean()),
                    interval=bootstrap_interval(values_P, rng=rng, resamples=resamples),
                    pairs=len(values_P),
                    extractor=metric.extractor,
                    real_split=real_split,
                    same_slide=any(pair_set.same_slide for pair_set, _ in group),
                )
            )
    return entries


# --- the part of the stage


def write_similarity(
    context: StageContext, *, patches: PatchSet, labels: Mapping[int, np.ndarray], samples: SampleFolder
) -> None:
    """Write ``similarity.json`` and ``missing.json``; ``labels`` are the patches' clusters of each k, in their order.

    The entries of each k are also written to ``PARTIAL`` when they are there. Those that a killed call left are used
    where they hold the same metrics.
    """
    config = context.config
    device = torch.device(resolve_device(config.runtime.device))
    settings = PairMetricSettings(patches.size, config.evaluation.lpips_trunk, device, download=True)
    metrics, missing = make_metrics(settings)
    for name, reason in missing.items():
        context.say(f"{name} is not measured: {reason}")

    entries: list[SimilarityEntry] = []
    for k in samples.ks:

        def compute(k: int = k) -> list[SimilarityEntry]:
            return entries_of_k(context, patches=patches, labels_N=labels[k], samples=samples, metrics=metrics, k=k)

        of_k, is_new = entries_or_kept(context, name=f"k{k}", metrics=metrics, compute=compute)
        if is_new:
            context.say(f"k = {k}: {overall_line(of_k) or 'no pairs of samples and real patches to compare'}")
        entries += of_k
    Similarity(entries=tuple(entries), missing=missing).save(context.out)


def entries_or_kept(
    context: StageContext, *, name: str, metrics: Sequence[PairMetric], compute: Callable[[], list[SimilarityEntry]]
) -> tuple[list[SimilarityEntry], bool]:
    """What ``compute`` gives, kept in ``PARTIAL`` under ``name``; or what a killed call left there, if of the same
    metrics. Also whether it was computed now.
    """
    extractors = {metric.name: metric.extractor for metric in metrics}
    path = context.out / PARTIAL / f"{name}.json"
    kept = read_json(path) if path.is_file() else {}
    if kept.get("extractors") == extractors:
        return [SimilarityEntry.model_validate(entry) for entry in kept["entries"]], False
    entries = compute()
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"extractors": extractors, "entries": [entry.as_json() for entry in entries]})
    return entries, True


def overall_line(entries: Sequence[SimilarityEntry]) -> str:
    """Each metric over all clusters, with its floor, in one line; empty where nothing was compared."""
    over_all = {(entry.metric, entry.comparison): entry.value for entry in entries if entry.cluster is None}
    parts = []
    for (metric, comparison), value in over_all.items():
        if comparison == "synthetic_real":
            floor = over_all.get((metric, "real_real"))
            parts.append(f"{metric} {value:.3f}" + ("" if floor is None else f" (real against real {floor:.3f})"))
    return ", ".join(parts)


def entries_of_k(
    context: StageContext,
    *,
    patches: PatchSet,
    labels_N: np.ndarray,
    samples: SampleFolder,
    metrics: Sequence[PairMetric],
    k: int,
) -> list[SimilarityEntry]:
    """Draw the pairs of one k and compare them; ``labels_N`` are the patches' clusters."""
    config = context.config
    table = patches.columns("split", "slide")
    slides_N = pd.factorize(table["slide"].astype(str), sort=True)[0]  # numbers in the order of names
    real = RealPatches(labels_N, table["split"].to_numpy(), slides_N)
    sets = pair_sets(real, samples=samples.rows(k), k=k, count=config.evaluation.pairs, seed=config.seed)
    with meter(f"comparing, k = {k}", total=sum(len(pair_set.pairs) for pair_set in sets)) as counter:
        values = [
            measure(
                metrics,
                left=patches.images if pair_set.comparison == "real_real" else samples.images,
                right=patches.images,
                pairs=pair_set.pairs,
                advance=counter.advance,
            )
            for pair_set in sets
        ]
    return similarity_entries(
        sets, values, metrics=metrics, k=k, seed=config.seed, resamples=config.evaluation.bootstrap
    )
