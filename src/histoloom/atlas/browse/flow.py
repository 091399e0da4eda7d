"""How clusters split and merge from one k to the next: a picture of bands between columns, and the same in words.

Shape suffixes: A and B clusters of two k, F those of the k in focus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from histoloom.atlas.browse.cluster_table import ClusterTable

WIDTH, NODE, MARGIN, GAP = 150, 12, 28, 5
"""Of the picture, in its own units: from column to column, a node's width, the room around, and between nodes."""

HEIGHT, ROW = 620, 24
"""The picture's height, more where a column has so many clusters that each would have less than ``ROW``."""

LEAST = 0.05
"""Shares of a cluster below this are left out of the words."""

_SWEEPS = 6


@dataclass(frozen=True)
class Node:
    """A cluster in a column; ``focus`` is the cluster of the k in focus that most of its patches belong to."""

    k: int
    cluster: int
    patches: int
    focus: int
    x: float
    y: float
    height: float


@dataclass(frozen=True)
class Band:
    """Patches that go from one column's cluster to the next one's; ``path`` is an SVG path."""

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
    """A cluster at another k, and the share (0..1) of the patches that are spoken of which it holds."""

    cluster: int
    share: float


@dataclass(frozen=True)
class Step:
    """A cluster in words: where its patches are at the other k, by falling share; ``whole``: nearly all in one."""

    cluster: int
    patches: int
    to: tuple[Share, ...]

    @property
    def whole(self) -> bool:
        """Whether nine patches of ten stay together."""
        return bool(self.to) and self.to[0].share >= 0.9


def steps(shared_AB: np.ndarray) -> list[Step]:
    """Each cluster of one k in words, from the patches that it shares with those of another."""
    found = []
    for cluster, row_B in enumerate(shared_AB):
        n = int(row_B.sum())
        order_B = np.argsort(-row_B, kind="stable")
        shares = tuple(Share(int(b), float(row_B[b] / n)) for b in order_B if n and row_B[b] / n >= LEAST)
        found.append(Step(cluster, n, shares))
    return found


def counterpart(shared_AB: np.ndarray, *, cluster: int) -> int:
    """The cluster of the other k that holds most of a cluster's patches."""
    return int(shared_AB[cluster].argmax())


def flow(tables: Sequence[ClusterTable], *, focus: int) -> Flow:
    """The picture of several k, rising; colours follow the clusters of the k in ``focus``, which is among them."""
    (focused,) = (table for table in tables if table.k == focus)
    counts = [_counts(first, second, focus=focused) for first, second in pairwise(tables)]
    height = float(max(HEIGHT, 2 * MARGIN + ROW * max(table.k for table in tables)))
    orders = _orders([count_ABF.sum(axis=2) for count_ABF in counts], first=tables[0])
    nodes = {
        (table.k, node.cluster): node
        for column, (table, order) in enumerate(zip(tables, orders, strict=True))
        for node in _nodes(table, order=order, column=column, focus=focused, picture=height)
    }
    bands = [
        band
        for first, second, count_ABF in zip(tables, tables[1:], counts, strict=False)
        for band in _bands(first.k, second.k, count_ABF=count_ABF, nodes=nodes)
    ]
    columns = tuple((table.k, MARGIN + WIDTH * column) for column, table in enumerate(tables))
    width = 2 * MARGIN + WIDTH * (len(tables) - 1) + NODE
    return Flow(width, height, columns, tuple(nodes.values()), tuple(bands))


def _counts(first: ClusterTable, second: ClusterTable, *, focus: ClusterTable) -> np.ndarray:
    """Patches by their cluster at two k and at the one in focus, int64 (A, B, F)."""
    known_N = (first.label_N >= 0) & (second.label_N >= 0) & (focus.label_N >= 0)
    cell_N = first.label_N[known_N].astype(np.int64) * second.k + second.label_N[known_N]
    cell_N = cell_N * focus.k + focus.label_N[known_N]
    shape = (first.k, second.k, focus.k)
    return np.bincount(cell_N, minlength=int(np.prod(shape))).reshape(shape)


def _orders(shared: Sequence[np.ndarray], *, first: ClusterTable) -> list[np.ndarray]:
    """Clusters from top to bottom in each column, so that few bands cross: each goes to the mean of its partners."""
    sizes = [len(shared_AB) for shared_AB in shared] + ([shared[-1].shape[1]] if shared else [first.k])
    places = [np.arange(size, dtype=np.float64) / size for size in sizes]
    for _ in range(_SWEEPS):
        for column in range(1, len(sizes)):
            places[column] = _beside(shared[column - 1].T, places=places[column - 1])
        for column in range(len(sizes) - 2, -1, -1):
            places[column] = _beside(shared[column], places=places[column + 1])
    return [np.argsort(place, kind="stable") for place in places]


def _beside(shared_AB: np.ndarray, *, places: np.ndarray) -> np.ndarray:
    """Places (A,) in 0..1, ranked by the mean place of the partners."""
    weight_A = shared_AB.sum(axis=1)
    mean_A = np.where(weight_A > 0, (shared_AB @ places) / np.maximum(weight_A, 1), 1.0)
    rank_A = np.empty(len(mean_A))
    rank_A[np.argsort(mean_A, kind="stable")] = np.arange(len(mean_A))
    ranked: np.ndarray = rank_A / len(rank_A)
    return ranked


def _nodes(table: ClusterTable, *, order: np.ndarray, column: int, focus: ClusterTable, picture: float) -> list[Node]:
    sizes_K = np.array([len(rows) for rows in table.members])
    room = picture - 2 * MARGIN - GAP * (table.k - 1)
    y, found = float(MARGIN), []
    for cluster in order.tolist():
        height = max(1.0, room * sizes_K[cluster] / max(int(sizes_K.sum()), 1))
        labels = focus.label_N[table.members[cluster]]
        most = int(np.bincount(labels[labels >= 0], minlength=focus.k).argmax())
        found.append(Node(table.k, cluster, int(sizes_K[cluster]), most, MARGIN + WIDTH * column, y, height))
        y += height + GAP
    return found


def _bands(first: int, second: int, *, count_ABF: np.ndarray, nodes: Mapping[tuple[int, int], Node]) -> list[Band]:
    """Bands of one step, each end in the order of the other column, so that none crosses at a node."""
    shared_AB = count_ABF.sum(axis=2)
    left = {a: nodes[first, a].y for a in range(len(shared_AB))}
    right = {b: nodes[second, b].y for b in range(shared_AB.shape[1])}
    pairs = sorted(np.argwhere(shared_AB > 0).tolist(), key=lambda ab: (nodes[first, ab[0]].y, nodes[second, ab[1]].y))
    ends = {}
    for a, b in sorted(pairs, key=lambda ab: (nodes[second, ab[1]].y, nodes[first, ab[0]].y)):
        ends[a, b] = right[b]
        right[b] += _height(nodes[second, b], part=shared_AB[a, b], whole=shared_AB[:, b].sum())
    found = []
    for a, b in pairs:
        start, end = nodes[first, a], nodes[second, b]
        thick = _height(start, part=shared_AB[a, b], whole=shared_AB[a].sum())
        thick_end = _height(end, part=shared_AB[a, b], whole=shared_AB[:, b].sum())
        path = _path(start.x + NODE, end.x, tops=(left[a], ends[a, b]), heights=(thick, thick_end))
        left[a] += thick
        n, share = int(shared_AB[a, b]), float(shared_AB[a, b] / shared_AB[a].sum())
        found.append(Band((first, a), (second, b), n, share, int(count_ABF[a, b].argmax()), path))
    return found


def _height(node: Node, *, part: int, whole: int) -> float:
    return node.height * float(part) / float(whole)


def _path(x0: float, x1: float, *, tops: tuple[float, float], heights: tuple[float, float]) -> str:
    middle = (x0 + x1) / 2
    (top0, top1), (low0, low1) = tops, (tops[0] + heights[0], tops[1] + heights[1])
    return (
        f"M{x0:.1f} {top0:.1f}C{middle:.1f} {top0:.1f} {middle:.1f} {top1:.1f} {x1:.1f} {top1:.1f}"
        f"V{low1:.1f}C{middle:.1f} {low1:.1f} {middle:.1f} {low0:.1f} {x0:.1f} {low0:.1f}Z"
    )
