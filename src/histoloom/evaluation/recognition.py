"""How well labelled images are recognised: confusion, recall of each cluster, balanced accuracy, with intervals.

Legend of shapes: N images, K clusters.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from histoloom.evaluation.intervals import wilson_interval


@dataclass(frozen=True)
class Recognition:
    """``confusion``: images by their own cluster (rows) and the one seen in them (columns), counts.

    ``recall`` and its 95 % Wilson ``intervals``: of each cluster, None where it has no image. ``accuracy``: balanced,
    the mean of the recalls, with the ``interval`` of a bootstrap over the images of each cluster.
    """

    n: int
    accuracy: float
    interval: tuple[float, float]
    recall: tuple[float | None, ...]
    intervals: tuple[tuple[float, float] | None, ...]
    confusion: tuple[tuple[int, ...], ...]

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def recognition(own_N: np.ndarray, seen_N: np.ndarray, *, clusters: int, rng: np.random.Generator) -> Recognition:
    """What was seen in images of known clusters; every cluster counts the same, whatever its size."""
    assert len(own_N), "images to recognise"
    confusion_KK = confusion_matrix(own_N, seen_N, labels=np.arange(clusters))
    sizes_K = confusion_KK.sum(axis=1)
    right_K = confusion_KK.diagonal()
    present = np.flatnonzero(sizes_K)
    spreads = [_resampled(own_N, seen_N, cluster=int(c), rng=rng) for c in present]
    accuracy_R = np.mean(spreads, axis=0)
    low, high = np.quantile(accuracy_R, [0.025, 0.975])
    return Recognition(
        n=len(own_N),
        accuracy=float(np.mean(right_K[present] / sizes_K[present])),
        interval=(float(low), float(high)),
        recall=tuple(float(r / n) if n else None for r, n in zip(right_K, sizes_K, strict=True)),
        intervals=tuple(wilson_interval(int(r), int(n)) if n else None for r, n in zip(right_K, sizes_K, strict=True)),
        confusion=tuple(tuple(row) for row in confusion_KK.tolist()),
    )


RESAMPLES = 1000


def _resampled(own_N: np.ndarray, seen_N: np.ndarray, *, cluster: int, rng: np.random.Generator) -> np.ndarray:
    """Recalls of a cluster in bootstrap resamples of its images, (RESAMPLES,)."""
    right = seen_N[own_N == cluster] == cluster
    return rng.binomial(len(right), right.mean(), size=RESAMPLES) / len(right)
