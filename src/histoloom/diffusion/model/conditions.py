"""The conditions of the generator: each pair (k, cluster) of the sweep as one number, and one number for no condition.

Where a training uses corrections of single patches, names that no cluster has follow the clusters of their k. The last
number is the null condition of classifier-free guidance (Ho and Salimans 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from histoloom.errors import UserError


@dataclass(frozen=True)
class Conditions:
    """Numbers the clusters of every k of a sweep: first those of the smallest k, then those of the next.

    ``extra``: how many further conditions each k has, numbered on from its clusters; empty where none has any.
    """

    ks: tuple[int, ...]
    extra: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many conditions each k has."""
        extra = self.extra or (0,) * len(self.ks)
        return tuple(k + more for k, more in zip(self.ks, extra, strict=True))

    @property
    def null(self) -> int:
        """The number of the null condition."""
        return sum(self.sizes)

    @property
    def count(self) -> int:
        """How many conditions there are, with the null."""
        return self.null + 1

    def offset(self, k: int) -> int:
        """The number of cluster 0 of ``k``; ``UserError`` where the sweep has no such k."""
        if k not in self.ks:
            raise UserError(f"no k = {k} in this generator; there are {', '.join(map(str, self.ks))}")
        return sum(self.sizes[: self.ks.index(k)])

    def size(self, k: int) -> int:
        """How many conditions ``k`` has: its clusters, and the names that no cluster has."""
        return self.sizes[self.ks.index(k)]

    def number(self, *, k: int, cluster: int) -> int:
        """The number of a cluster of ``k``, or of a further name, counted on; ``UserError`` where there is none."""
        offset = self.offset(k)
        if not 0 <= cluster < self.size(k):
            raise UserError(f"no cluster {cluster} at k = {k}; there are 0 to {self.size(k) - 1}")
        return offset + cluster

    def numbers(self, labels_NS: np.ndarray) -> np.ndarray:
        """Condition numbers, int64 (N, S), from the clusters of N images at each of the S values of k.

        A negative cluster, that of an image without tissue, becomes the null.
        """
        numbers_NS = labels_NS.astype(np.int64) + np.array([self.offset(k) for k in self.ks])
        return np.where(labels_NS < 0, self.null, numbers_NS)
