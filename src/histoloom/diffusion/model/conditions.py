"""What the generator is told: the pair (k, cluster), as one number; one more number says nothing (the null).

A training that also sees patches in other stains tells the network so: the same numbers again, ``count`` higher. What
is drawn never asks for these, so that no sample has a stain that no slide has (augmentation that does not leak: Karras
et al. 2022, appendix F.2), and a trained network is kept without them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from histoloom.errors import UserError


@dataclass(frozen=True)
class Conditions:
    """Numbers the clusters of every k of a sweep: first those of the smallest k, then of the next."""

    ks: tuple[int, ...]

    @property
    def null(self) -> int:
        """The condition without information."""
        return sum(self.ks)

    @property
    def count(self) -> int:
        """Number of conditions, the null included."""
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
        """Labels of each image at every k of the sweep, (N, S), to condition numbers, (N, S) int64."""
        return labels_NS.astype(np.int64) + np.array([self.offset(k) for k in self.ks])

    def dropped(self, numbers_B: Tensor) -> Tensor:
        """The null in place of each number, (B,) int64; of a patch in another stain, the null of those."""
        return self.null + self.count * (numbers_B >= self.count)
