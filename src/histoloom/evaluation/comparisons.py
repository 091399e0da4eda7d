"""The numbers of one k: each cluster's synthetic patches against real ones, and real against real."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from histoloom.evaluation.intervals import bootstrap_interval
from histoloom.evaluation.metrics import PairMetric, Reader, measure
from histoloom.evaluation.pairing import Pairs, all_pairs, real_pairs
from histoloom.evaluation.similarity import Values
from histoloom.seeding import numpy_generator

Comparison = Literal["synthetic_real", "real_real", "synthetic_other"]

LEAST_HELD_OUT = 8
"""patches; with fewer held-out ones, training patches are the real side"""


@dataclass(frozen=True)
class Patches:
    """All real patches under one k, by row: cluster label, split and slide of each."""

    labels: np.ndarray
    splits: np.ndarray
    slides: np.ndarray

    def real_side(self, chosen: np.ndarray) -> tuple[np.ndarray, str]:
        """The rows among ``chosen`` (bool) that stand for real tissue: held-out ones where there are enough."""
        held_out = np.flatnonzero(chosen & (self.splits == "holdout"))
        if len(held_out) >= LEAST_HELD_OUT:
            return held_out, "holdout"
        return np.flatnonzero(chosen & (self.splits == "train")), "train"


@dataclass(frozen=True)
class Task:
    """One comparison of one cluster: which pairs, of what."""

    cluster: int
    comparison: Comparison
    pairs: Pairs
    real_split: str
    same_slide: bool


@dataclass(frozen=True)
class Measured:
    """A task's values by metric."""

    task: Task
    values: Mapping[str, Values]


def plan(patches: Patches, *, samples: Mapping[int, np.ndarray], k: int, count: int, seed: int) -> list[Task]:
    """The comparisons of every cluster that has samples; ``samples`` are the clusters' sample rows.

    - synthetic_real: a sample against a real patch of its cluster
    - real_real: such a real patch against any real patch of the cluster on another slide
    - synthetic_other: a sample against a real patch of any other cluster
    """
    tasks = []
    for cluster, synthetic in sorted(samples.items()):
        own = patches.labels == cluster
        rows, split = patches.real_side(own)
        other_rows, other_split = patches.real_side(~own)

        def rng(comparison: Comparison, cluster: int = cluster) -> np.random.Generator:
            return numpy_generator(seed, "evaluation", "pairs", k, cluster, comparison)

        against_own = _numbers(synthetic, rows, count=count, rng=rng("synthetic_real"))
        against_other = _numbers(synthetic, other_rows, count=count, rng=rng("synthetic_other"))
        real, same_slide = real_pairs(
            rows, np.flatnonzero(own), slides=patches.slides, count=count, rng=rng("real_real")
        )
        tasks += [
            Task(cluster, "synthetic_real", against_own, split, same_slide=False),
            Task(cluster, "real_real", real, split, same_slide=same_slide),
            Task(cluster, "synthetic_other", against_other, other_split, same_slide=False),
        ]
    return [task for task in tasks if len(task.pairs)]


def measure_tasks(
    tasks: Sequence[Task],
    *,
    metrics: Sequence[PairMetric],
    real: Reader,
    synthetic: Reader,
    advance: Callable[[int], None],
) -> list[Measured]:
    """Every task's values; ``advance`` is told the number of pairs after each."""
    results = []
    for task in tasks:
        left = real if task.comparison == "real_real" else synthetic
        results.append(Measured(task, measure(metrics, left=left, right=real, pairs=task.pairs)))
        advance(len(task.pairs))
    return results


def entries(
    results: Sequence[Measured], *, metrics: Sequence[PairMetric], k: int, seed: int, resamples: int
) -> list[dict[str, Any]]:
    """``similarity.json`` of one k: an entry for each cluster, comparison and metric, and over all clusters (null).

    Over all clusters, every pair counts the same.
    """
    found = []
    for cluster, comparison, group in _groups(results):
        for metric in metrics:
            values = np.concatenate([result.values[metric.name] for result in group])
            rng = numpy_generator(seed, "evaluation", "bootstrap", k, str(cluster), comparison, metric.name)
            splits = {result.task.real_split for result in group}
            entry = {
                "k": k,
                "cluster": cluster,
                "comparison": comparison,
                "metric": metric.name,
                "value": float(values.mean()),
                "interval": list(bootstrap_interval(values, rng=rng, resamples=resamples)),
                "pairs": len(values),
                "extractor": metric.extractor,
                "real_split": splits.pop() if len(splits) == 1 else "mixed",
            }
            if any(result.task.same_slide for result in group):
                entry["same_slide"] = True
            found.append(entry)
    return found


def _groups(results: Sequence[Measured]) -> Iterator[tuple[int | None, Comparison, list[Measured]]]:
    for result in results:
        yield result.task.cluster, result.task.comparison, [result]
    for comparison in dict.fromkeys(result.task.comparison for result in results):
        yield None, comparison, [result for result in results if result.task.comparison == comparison]


def _numbers(left: np.ndarray, right: np.ndarray, *, count: int, rng: np.random.Generator) -> Pairs:
    pairs = all_pairs(len(left), len(right), count=count, rng=rng)
    return np.stack([left[pairs[:, 0]], right[pairs[:, 1]]], axis=1)
