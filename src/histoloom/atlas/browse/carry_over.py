"""Names that carry over from one k to another: where two groups hold nearly the same patches, they are one tissue."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from histoloom.names import Label

MIN_OVERLAP = 0.8
"""Share of the patches of either group that lies in the other one, 0..1."""


@dataclass(frozen=True)
class CarriedName:
    """A cluster's label, taken from ``source`` (a cluster of ``source_k``); ``overlap`` is the smaller share, 0..1."""

    cluster: int
    label: Label
    source_k: int
    source: int
    overlap: float


def carried_names(
    own: Mapping[int, Label],
    others: Mapping[int, Mapping[int, Label]],
    *,
    shared_with: Callable[[int], np.ndarray],
) -> list[CarriedName]:
    """For each cluster of ``own`` without a name, the label of the cluster of another k that overlaps it most.

    ``others`` are the labels at other k. ``shared_with(k)`` counts the patches that the clusters share with those of k,
    (clusters, k). Both must have ``MIN_OVERLAP`` of their patches in common.
    """
    best: dict[int, CarriedName] = {}
    for k, labels in others.items():
        if not any(label.name for label in labels.values()):
            continue
        shared_AB = shared_with(k)
        own_A = np.maximum(shared_AB.sum(axis=1, keepdims=True), 1)
        other_B = np.maximum(shared_AB.sum(axis=0, keepdims=True), 1)
        overlap_AB = shared_AB / np.maximum(own_A, other_B)
        for cluster, source in np.argwhere(overlap_AB >= MIN_OVERLAP).tolist():
            overlap = float(overlap_AB[cluster, source])
            if own[cluster].name or not labels[source].name:
                continue
            if cluster not in best or overlap > best[cluster].overlap:
                best[cluster] = CarriedName(cluster, labels[source], k, source, overlap)
    return [best[cluster] for cluster in sorted(best)]
