"""Which clusters lie beside a cluster: where its patches would go if it were not there.

Shape suffixes: M patches of the cluster, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from histoloom.atlas.browse.cluster_table import ClusterTable

UNSURE = 0.9
"""A patch whose own cluster has less probability than this is unsure."""


@dataclass(frozen=True)
class Neighbour:
    """Another cluster, the share of patches of which it is the second most probable, and of the unsure ones."""

    cluster: int
    share: float
    unsure: int


def neighbours(table: ClusterTable, *, cluster: int, n: int) -> list[Neighbour]:
    """The ``n`` clusters that are most often second, by falling share."""
    rows_M = table.members[cluster]
    second_M, unsure_M = table.second_N[rows_M], table.p_N[rows_M] < UNSURE
    all_K = np.bincount(second_M, minlength=table.k)
    unsure_K = np.bincount(second_M[unsure_M], minlength=table.k)
    order_K = np.argsort(-all_K, kind="stable")[:n]
    return [Neighbour(int(c), float(all_K[c] / len(rows_M)), int(unsure_K[c])) for c in order_K if all_K[c] > 0]


def unsure(table: ClusterTable, *, cluster: int) -> int:
    """How many of a cluster's patches are unsure."""
    return int((table.p_N[table.members[cluster]] < UNSURE).sum())
