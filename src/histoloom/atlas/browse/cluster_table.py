"""The clusters of one k over a run's patches: members, probabilities, neighbouring clusters, and sort orders.

Shape suffixes: N patches, K clusters, S slides, M members of one cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from safetensors import safe_open

from histoloom.atlas.browse.patch_table import PatchTable

SortOrder = Literal["typical", "random", "borderline"]

UNSURE_BELOW = 0.9
"""A patch whose own cluster has less probability than this is unsure."""

_DIGITS = 4  # as many as the page shows: probabilities that agree to so many digits are equally typical


@dataclass(frozen=True)
class Extent:
    """The extent of a cluster: patches, their share of all (0..1), and the slides and patients they come from."""

    patches: int
    share: float
    slides: int
    patients: int


@dataclass(frozen=True)
class NeighbourCluster:
    """Another cluster, the share (0..1) of patches whose second most probable cluster it is, and the unsure ones."""

    cluster: int
    share: float
    unsure: int


@dataclass(frozen=True)
class ClusterTable:
    """Rows as in the ``PatchTable``: cluster int16 (-1: none), its probability, the second most probable and its own.

    ``members[c]`` are the rows of cluster c, rising; ``slides_KS`` counts its patches on each slide.
    """

    k: int
    label_N: np.ndarray
    p_N: np.ndarray
    second_N: np.ndarray
    p_second_N: np.ndarray
    members: tuple[np.ndarray, ...]
    slides_KS: np.ndarray

    def extent(self, cluster: int, *, table: PatchTable) -> Extent:
        """The extent of a cluster."""
        on_S = self.slides_KS[cluster] > 0
        n = len(self.members[cluster])
        patients = table.slides.loc[on_S, "patient"].nunique()
        return Extent(n, n / max(int(self.slides_KS.sum()), 1), table.slides.loc[on_S, "slide"].nunique(), patients)

    def ordered(self, cluster: int, *, order: SortOrder, random_N: np.ndarray) -> np.ndarray:
        """A cluster's rows (M,): the most probable first, the least certain first, or in random order.

        ``random_N`` is a permutation of all rows. It gives the random order, and the order of patches whose
        probability is the same to four digits, which many have.
        """
        return self.sorted_rows(self.members[cluster], order=order, random_N=random_N)

    def sorted_rows(self, rows_M: np.ndarray, *, order: SortOrder, random_N: np.ndarray) -> np.ndarray:
        """Rows of any clusters, in the orders of ``ordered``."""
        random_M = random_N[rows_M]
        if order == "random":
            return rows_M[np.argsort(random_M)]
        if order == "typical":
            return rows_M[np.lexsort((random_M, -self.p_N[rows_M].astype(np.float64).round(_DIGITS)))]
        return rows_M[np.lexsort((random_M, self.p_N[rows_M] - self.p_second_N[rows_M]))]

    def representatives(self, rows_M: np.ndarray, *, n: int, random_N: np.ndarray, slide_N: np.ndarray) -> np.ndarray:
        """The ``n`` patches of a group on its card: of the 4 n most probable ones, each slide in turn gives one."""
        rows_M = self.sorted_rows(rows_M, order="typical", random_N=random_N)[: 4 * n]
        return rows_M[round_robin(slide_N[rows_M].tolist())[:n]]

    def most_typical(self, cluster: int, *, n: int, table: PatchTable) -> np.ndarray:
        """The ``n`` patches of the report: as ``representatives``, but exact probabilities, ties in the rows' order."""
        rows_M = self.members[cluster]
        rows_M = rows_M[np.argsort(-self.p_N[rows_M], kind="stable")][: 4 * n]
        return rows_M[round_robin(table.slides["slide"].iloc[table.slide_N[rows_M]])[:n]]

    def neighbours(self, cluster: int, *, n: int) -> list[NeighbourCluster]:
        """The ``n`` clusters that are the second most probable of most of a cluster's patches, by falling share."""
        rows_M = self.members[cluster]
        rows_M = rows_M[self.second_N[rows_M] >= 0]
        second_M, unsure_M = self.second_N[rows_M], self.p_N[rows_M] < UNSURE_BELOW
        all_K = np.bincount(second_M, minlength=self.k)
        unsure_K = np.bincount(second_M[unsure_M], minlength=self.k)
        order_K = np.argsort(-all_K, kind="stable")[:n]
        return [
            NeighbourCluster(int(c), float(all_K[c] / len(rows_M)), int(unsure_K[c]))
            for c in order_K
            if all_K[c] > 0 and c != cluster
        ]

    def unsure(self, cluster: int) -> int:
        """How many of a cluster's patches are unsure."""
        return int((self.p_N[self.members[cluster]] < UNSURE_BELOW).sum())


def read_clusters(folder: Path, *, table: PatchTable, k: int, tissues: Iterable[Sequence[int]] = ()) -> ClusterTable:
    """The clusters of ``k``, one of the sweep, from the stage's folder.

    The clusters of each of ``tissues`` are one, with the sum of their probabilities: the first of them holds the
    patches of all, and the others have none.
    """
    with pq.ParquetFile(folder / "index.parquet") as file:
        index = file.read(["patch_id", f"k{k}"])
    with safe_open(folder / "probabilities.safetensors", framework="numpy") as tensors:
        p_NK = tensors.get_tensor(f"k{k}")
    label_N = index.column(f"k{k}").to_numpy().astype(np.int16)
    p_NK = np.array(p_NK)
    for first, *others in tissues:
        label_N[np.isin(label_N, others)] = first
        p_NK[:, first] += p_NK[:, others].sum(axis=1)
        p_NK[:, others] = -1  # second to none

    # The probability of each patch's own cluster, and the most probable other cluster with its probability
    position_N = np.arange(len(p_NK))
    others_NK = p_NK.copy()
    others_NK[position_N, label_N] = -1
    second_N = others_NK.argmax(axis=1).astype(np.int16)
    p_N = p_NK[position_N, label_N].astype(np.float32)
    p_second_N = np.maximum(others_NK[position_N, second_N], 0).astype(np.float32)  # 0 where there is no other

    # From the order of the stage's index to that of the patch table
    row_N = table.rows_of(index.column("patch_id"))
    known_N = row_N >= 0

    def in_table(values_N: np.ndarray, *, default: int) -> np.ndarray:
        column = np.full(len(table), default, values_N.dtype)
        column[row_N[known_N]] = values_N[known_N]
        return column

    label_N = in_table(label_N, default=-1)
    members, slides_KS = _members(label_N, n=k, table=table)
    return ClusterTable(
        k=k,
        label_N=label_N,
        p_N=in_table(p_N, default=0),
        second_N=in_table(second_N, default=-1),
        p_second_N=in_table(p_second_N, default=0),
        members=members,
        slides_KS=slides_KS,
    )


def regrouped(clusters: ClusterTable, label_N: np.ndarray, *, n: int, table: PatchTable) -> ClusterTable:
    """The table with other labels, int16 (N,), of ``n`` groups, where experts have corrected patches.

    A patch that is elsewhere now has no probability there, so that it is the least typical one of its group; the most
    probable other group is the one that it came from.
    """
    members, slides_KS = _members(label_N, n=n, table=table)
    moved_N = label_N != clusters.label_N
    return ClusterTable(
        k=n,
        label_N=label_N,
        p_N=np.where(moved_N, np.float32(0), clusters.p_N),
        second_N=np.where(moved_N, clusters.label_N, clusters.second_N),
        p_second_N=np.where(moved_N, clusters.p_N, clusters.p_second_N),
        members=members,
        slides_KS=slides_KS,
    )


def _members(label_N: np.ndarray, *, n: int, table: PatchTable) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """The rows of each label 0..n-1, rising, and how many of them each slide has, (n, S)."""
    order_N = np.argsort(label_N, kind="stable").astype(np.int32)
    starts = np.searchsorted(label_N[order_N], np.arange(n + 1))
    members = tuple(order_N[starts[c] : starts[c + 1]] for c in range(n))
    slides = len(table.slides)
    return members, np.stack([np.bincount(table.slide_N[rows], minlength=slides) for rows in members])


def overlap(first: ClusterTable, second: ClusterTable) -> np.ndarray:
    """How many patches each cluster of ``first`` shares with each of ``second``, int64 (K, K of second)."""
    both_N = (first.label_N >= 0) & (second.label_N >= 0)
    pair_N = first.label_N[both_N].astype(np.int64) * second.k + second.label_N[both_N]
    return np.bincount(pair_N, minlength=first.k * second.k).reshape(first.k, second.k)


def round_robin(groups: Iterable[Hashable]) -> np.ndarray:
    """An order of rows in which each group in turn gives its next one, int64; ``groups`` has the group of each row."""
    seen: Counter[Hashable] = Counter()
    turns = []
    for group in groups:
        turns.append(seen[group])
        seen[group] += 1
    return np.argsort(np.array(turns, dtype=int), kind="stable")
