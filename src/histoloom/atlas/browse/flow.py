"""How clusters split and merge from one k to the next: a Sankey diagram of nodes and bands, and the same in words.

Shape suffixes: A and B clusters of two k, F those of the k in focus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from histoloom.atlas.browse.cluster_table import ClusterTable

WIDTH, NODE, MARGIN, GAP = 150, 12, 28, 5
"""Sizes in the picture's units: from column to column, a node's width, the margin, and the gap between nodes."""

HEIGHT, ROW = 620, 24
"""The picture's height, more where a column has so many clusters that each would have less than ``ROW``."""

MIN_SHARE = 0.05
"""Smaller shares of a cluster are left out of the words."""

WHOLE_SHARE = 0.9
"""A cluster stays whole where so many of its patches are in one cluster of the other k."""

_SWEEPS = 6


@dataclass(frozen=True)
class Node:
    """A cluster in a column; ``focus`` is the cluster of the k in focus that most of its patches belong to.

    ``x`` and ``y`` are its left and top.
    """

    k: int
    cluster: int
    patches: int
    focus: int
    x: float
    y: float
    height: float


@dataclass(frozen=True)
class Band:
    """Patches that go from a cluster of one column to one of the next; ``start`` and ``end`` are (k, cluster).

    ``share`` (0..1) is their share of the cluster at the start; ``path`` is an SVG path.
    """

    start: tuple[int, int]
    end: tuple[int, int]
    patches: int
    share: float
    focus: int
    path: str


@dataclass(frozen=True)
class Flow:
    """The picture: its size, a column for each k with its x, nodes and bands."""

    width: float
    height: float
    columns: tuple[tuple[int, float], ...]
    nodes: tuple[Node, ...]
    bands: tuple[Band, ...]


@dataclass(frozen=True)
class Share:
    """A cluster at another k, and the share (0..1) of the patches that it holds."""

    cluster: int
    share: float


@dataclass(frozen=True)
class ClusterFlow:
    """Where a cluster's patches are at the other k, by falling share."""

    cluster: int
    patches: int
    to: tuple[Share, ...]

    @property
    def whole(self) -> bool:
        """Whether nearly all patches stay together."""
        return bool(self.to) and self.to[0].share >= WHOLE_SHARE


def cluster_flows(shared_AB: np.ndarray) -> list[ClusterFlow]:
    """Where the patches of each cluster of one k are at another k, from ``cluster_table.overlap``."""
    flows = []
    for cluster, row_B in enumerate(shared_AB):
        n = int(row_B.sum())
        order_B = np.argsort(-row_B, kind="stable")
        shares = tuple(Share(int(b), float(row_B[b] / n)) for b in order_B if n and row_B[b] / n >= MIN_SHARE)
        flows.append(ClusterFlow(cluster, n, shares))
    return flows


def counterpart(shared_AB: np.ndarray, *, cluster: int) -> int:
    """The cluster of the other k that holds most of a cluster's patches."""
    return int(shared_AB[cluster].argmax())


def flow(tables: Sequence[ClusterTable], *, focus: int) -> Flow:
    """The picture of several k, rising; colours follow the clusters of the k in ``focus``, which is among them."""
    (focused,) = (table for table in tables if table.k == focus)

    # Patches by their cluster at two neighbouring k and at the one in focus
    counts = []
    for first, second in pairwise(tables):
        known_N = (first.label_N >= 0) & (second.label_N >= 0) & (focused.label_N >= 0)
        shape = (first.k, second.k, focused.k)
        cell_N = np.ravel_multi_index(
            tuple(t.label_N[known_N].astype(np.int64) for t in (first, second, focused)), shape
        )
        counts.append(np.bincount(cell_N, minlength=int(np.prod(shape))).reshape(shape))

    # Nodes of each column from top to bottom, their heights by their patches
    picture_height = float(max(HEIGHT, 2 * MARGIN + ROW * max(table.k for table in tables)))
    orders = _column_orders([count_ABF.sum(axis=2) for count_ABF in counts], first_k=tables[0].k)
    nodes: dict[tuple[int, int], Node] = {}
    for column, (table, order) in enumerate(zip(tables, orders, strict=True)):
        sizes_K = np.array([len(rows) for rows in table.members])
        room, y = picture_height - 2 * MARGIN - GAP * (table.k - 1), float(MARGIN)
        for cluster in order.tolist():
            height = max(1.0, room * sizes_K[cluster] / max(int(sizes_K.sum()), 1))
            labels = focused.label_N[table.members[cluster]]
            most = int(np.bincount(labels[labels >= 0], minlength=focused.k).argmax())
            x = MARGIN + WIDTH * column
            nodes[table.k, cluster] = Node(table.k, cluster, int(sizes_K[cluster]), most, x, y, height)
            y += height + GAP

    bands = []
    for first, second, count_ABF in zip(tables, tables[1:], counts, strict=False):
        starts = [nodes[first.k, cluster] for cluster in range(first.k)]
        ends = [nodes[second.k, cluster] for cluster in range(second.k)]
        bands += _bands(starts, ends, count_ABF=count_ABF)
    columns = tuple((table.k, MARGIN + WIDTH * column) for column, table in enumerate(tables))
    width = 2 * MARGIN + WIDTH * (len(tables) - 1) + NODE
    return Flow(width, picture_height, columns, tuple(nodes.values()), tuple(bands))


def _column_orders(shared: Sequence[np.ndarray], *, first_k: int) -> list[np.ndarray]:
    """Clusters from top to bottom in each column, so that few bands cross.

    The barycentre heuristic of Sugiyama, Tagawa and Toda (1981): each node moves to the mean place of its partners,
    in sweeps to the right and to the left.
    """
    sizes = [len(shared_AB) for shared_AB in shared] + ([shared[-1].shape[1]] if shared else [first_k])
    places = [np.arange(size, dtype=np.float64) / size for size in sizes]

    def ranked(shared_AB: np.ndarray, partners: np.ndarray) -> np.ndarray:
        weight_A = shared_AB.sum(axis=1)
        mean_A = np.where(weight_A > 0, (shared_AB @ partners) / np.maximum(weight_A, 1), 1.0)
        rank_A = np.empty(len(mean_A))
        rank_A[np.argsort(mean_A, kind="stable")] = np.arange(len(mean_A))
        return np.asarray(rank_A / len(rank_A))

    for _ in range(_SWEEPS):
        for column in range(1, len(sizes)):
            places[column] = ranked(shared[column - 1].T, places[column - 1])
        for column in range(len(sizes) - 2, -1, -1):
            places[column] = ranked(shared[column], places[column + 1])
    return [np.argsort(place, kind="stable") for place in places]


def _bands(starts: Sequence[Node], ends: Sequence[Node], *, count_ABF: np.ndarray) -> list[Band]:
    """The bands between two columns, each end in the order of the other column, so that none crosses at a node."""
    shared_AB = count_ABF.sum(axis=2)
    share_of_start_AB = shared_AB / np.maximum(shared_AB.sum(axis=1, keepdims=True), 1)
    share_of_end_AB = shared_AB / np.maximum(shared_AB.sum(axis=0, keepdims=True), 1)
    pairs = np.argwhere(shared_AB > 0).tolist()

    # Where each band arrives: from top to bottom at its end, in the order of the starts
    next_y = [node.y for node in ends]
    end_y = {}
    for a, b in sorted(pairs, key=lambda ab: (ends[ab[1]].y, starts[ab[0]].y)):
        end_y[a, b] = next_y[b]
        next_y[b] += ends[b].height * share_of_end_AB[a, b]

    bands = []
    next_y = [node.y for node in starts]
    for a, b in sorted(pairs, key=lambda ab: (starts[ab[0]].y, ends[ab[1]].y)):
        x0, x1 = starts[a].x + NODE, ends[b].x
        middle = (x0 + x1) / 2
        top0, top1 = next_y[a], end_y[a, b]
        low0, low1 = top0 + starts[a].height * share_of_start_AB[a, b], top1 + ends[b].height * share_of_end_AB[a, b]
        next_y[a] = low0
        path = (
            f"M{x0:.1f} {top0:.1f}C{middle:.1f} {top0:.1f} {middle:.1f} {top1:.1f} {x1:.1f} {top1:.1f}"
            f"V{low1:.1f}C{middle:.1f} {low1:.1f} {middle:.1f} {low0:.1f} {x0:.1f} {low0:.1f}Z"
        )
        bands.append(
            Band(
                start=(starts[a].k, a),
                end=(ends[b].k, b),
                patches=int(shared_AB[a, b]),
                share=float(share_of_start_AB[a, b]),
                focus=int(count_ABF[a, b].argmax()),
                path=path,
            )
        )
    return bands
