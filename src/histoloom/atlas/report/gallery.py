"""Which patches and slides stand for a cluster or a run.

Shape suffixes: N patches, K clusters.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Extent:
    """How far a cluster reaches: patches, their share of all (0..1), and the slides and patients they come from."""

    patches: int
    share: float
    slides: int
    patients: int


def most_typical(
    p_NK: np.ndarray, *, labels_N: np.ndarray, groups_N: Sequence[Hashable], cluster: int, n: int
) -> list[int]:
    """Rows of the ``n`` patches with the highest probability of ``cluster``, from different slides where possible.

    Among the 4 n most probable patches of the cluster, each group (slide) in turn gives its best one. Ties are
    settled by the rows' order.
    """
    members = np.flatnonzero(labels_N == cluster)
    best = members[np.argsort(-p_NK[members, cluster], kind="stable")][: 4 * n]
    taken: dict[Hashable, int] = {}
    turns = []
    for row in best:
        group = groups_N[int(row)]
        turns.append(taken.get(group, 0))
        taken[group] = turns[-1] + 1
    order = np.argsort(np.array(turns, dtype=int), kind="stable")[:n]
    return [int(row) for row in best[order]]


def extents(labels_N: np.ndarray, *, slides_N: Sequence[str], patients_N: Sequence[str], k: int) -> list[Extent]:
    """How far each of the ``k`` clusters reaches."""
    slides, patients = np.asarray(slides_N, dtype=object), np.asarray(patients_N, dtype=object)
    found = []
    for cluster in range(k):
        inside = labels_N == cluster
        n = int(inside.sum())
        share = n / max(len(labels_N), 1)
        found.append(Extent(n, share, len(set(slides[inside])), len(set(patients[inside]))))
    return found


def spread(items: Sequence[str], *, groups: Sequence[Hashable], n: int) -> list[str]:
    """``n`` of ``items``, each group in turn giving one: so that few slides show many patients."""
    taken: dict[Hashable, int] = {}
    turns = []
    for group in groups:
        turns.append(taken.get(group, 0))
        taken[group] = turns[-1] + 1
    order = np.argsort(np.array(turns, dtype=int), kind="stable")[:n]
    return [items[int(row)] for row in order]
