"""The clusters of one k over a run's patches: who belongs where, how surely, and in what order they are shown.

Shape suffixes: N patches, K clusters, S slides, M members of one cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow.parquet as pq
from safetensors import safe_open

from histoloom.atlas.browse.patch_table import PatchTable
from histoloom.atlas.report.gallery import Extent

Order = Literal["typical", "random", "borderline"]
ORDERS: tuple[Order, ...] = get_args(Order)

_DIGITS = 3  # probabilities that agree to so many are equally typical


@dataclass(frozen=True)
class ClusterTable:
    """Rows as in the ``PatchTable``: label int16 (-1: not clustered), its probability, the runner-up and its own.

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
        """How far a cluster reaches."""
        on_S = self.slides_KS[cluster] > 0
        n = len(self.members[cluster])
        patients = table.slides.loc[on_S, "patient"].nunique()
        return Extent(n, n / max(int(self.slides_KS.sum()), 1), table.slides.loc[on_S, "slide"].nunique(), patients)

    def ordered(self, cluster: int, *, order: Order, random_N: np.ndarray) -> np.ndarray:
        """A cluster's rows (M,): the surest first, the least sure first, or at random.

        ``random_N`` is a permutation of all rows: it gives the random order, and settles between patches whose
        probability is the same to three digits, which many have.
        """
        rows_M = self.members[cluster]
        chance_M = random_N[rows_M]
        if order == "random":
            return rows_M[np.argsort(chance_M)]
        if order == "typical":
            return rows_M[np.lexsort((chance_M, -self.p_N[rows_M].round(_DIGITS)))]
        return rows_M[np.lexsort((chance_M, self.p_N[rows_M] - self.p_second_N[rows_M]))]

    def spread(self, cluster: int, *, n: int, random_N: np.ndarray, slide_N: np.ndarray) -> np.ndarray:
        """The ``n`` patches that show a cluster on a card: of the 4 n surest, each slide in turn gives one."""
        rows_M = self.ordered(cluster, order="typical", random_N=random_N)[: 4 * n]
        slides_M = slide_N[rows_M]
        turn_M = np.array([int((slides_M[:place] == slide).sum()) for place, slide in enumerate(slides_M)], int)
        return rows_M[np.argsort(turn_M, kind="stable")[:n]]


def read_clusters(folder: Path, *, table: PatchTable, k: int) -> ClusterTable:
    """The clusters of ``k``, one of the sweep, from the stage's folder."""
    with pq.ParquetFile(folder / "index.parquet") as file:
        found = file.read(["patch_id", f"k{k}"])
    with safe_open(folder / "probabilities.safetensors", framework="numpy") as tensors:
        p_MK = tensors.get_tensor(f"k{k}")
    row_M = table.rows_of(found.column("patch_id"))
    known_M = row_M >= 0
    label_M = found.column(f"k{k}").to_numpy().astype(np.int16)
    p_M, second_M, p_second_M = _sureness(p_MK, label_M=label_M)
    label_N, p_N, second_N, p_second_N = (
        _placed(values_M[known_M], rows=row_M[known_M], n=len(table), empty=empty)
        for values_M, empty in ((label_M, -1), (p_M, 0), (second_M, -1), (p_second_M, 0))
    )
    order_N = np.argsort(label_N, kind="stable").astype(np.int32)
    starts = np.searchsorted(label_N[order_N], np.arange(k + 1))
    members = tuple(order_N[starts[c] : starts[c + 1]] for c in range(k))
    slides = len(table.slides)
    slides_KS = np.stack([np.bincount(table.slide_N[rows], minlength=slides) for rows in members])
    return ClusterTable(k, label_N, p_N, second_N, p_second_N, members, slides_KS)


def overlap(first: ClusterTable, second: ClusterTable) -> np.ndarray:
    """How many patches each cluster of ``first`` shares with each of ``second``, int64 (K, K of second)."""
    both_N = (first.label_N >= 0) & (second.label_N >= 0)
    pair_N = first.label_N[both_N].astype(np.int64) * second.k + second.label_N[both_N]
    return np.bincount(pair_N, minlength=first.k * second.k).reshape(first.k, second.k)


def _sureness(p_MK: np.ndarray, *, label_M: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The probability of each patch's own cluster, the most probable other one, and its probability."""
    rows_M = np.arange(len(p_MK))
    own_M = p_MK[rows_M, label_M].astype(np.float32)
    others_MK = p_MK.copy()
    others_MK[rows_M, label_M] = -1
    second_M = others_MK.argmax(axis=1).astype(np.int16)
    return own_M, second_M, others_MK[rows_M, second_M].astype(np.float32)


def _placed(values: np.ndarray, *, rows: np.ndarray, n: int, empty: int) -> np.ndarray:
    result = np.full(n, empty, values.dtype)
    result[rows] = values
    return result
