"""The conditions of the generator: each pair (k, cluster) of the sweep as one number, and one number for no condition.

The last number is the null condition of classifier-free guidance (Ho and Salimans 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from histoloom.errors import UserError


@dataclass(frozen=True)
class Conditions:
    """Numbers the clusters of every k of a sweep: first those of the smallest k, then those of the next."""

    ks: tuple[int, ...]

    @property
    def null(self) -> int:
        """The number of the null condition."""
        return sum(self.ks)

    @property
    def count(self) -> int:
        """How many conditions there are, with the null."""
        return self.null + 1

    def offset(self, k: int) -> int:
        """The number of cluster 0 of ``k``; ``UserError`` where the sweep has no such k."""
        if k not in self.ks:
            raise UserError(f"no k = {k} in this generator; there are {', '.join(map(str, self.ks))}")
        return sum(self.ks[: self.ks.index(k)])

    def number(self, *, k: int, cluster: int) -> int:
        """The number of a cluster of ``k``; ``UserError`` where there is none."""
        offset = self.offset(k)
        if not 0 <= cluster < k:
            raise UserError(f"no cluster {cluster} at k = {k}; there are 0 to {k - 1}")
        return offset + cluster

    def numbers(self, labels_NS: np.ndarray) -> np.ndarray:
        """Condition numbers, int64 (N, S), from the clusters of N images at each of the S values of k."""
        return labels_NS.astype(np.int64) + np.array([self.offset(k) for k in self.ks])
