"""Sets in which every cluster has the share that it has in real tissue.

Samples hold about the same number of every cluster, real patches do not: compared as they are, sets would differ by
how much there is of each tissue, whatever the samples look like. Legend of shapes: K clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Pools = Mapping[int, np.ndarray]
"""The rows of each cluster."""


@dataclass(frozen=True)
class Quotas:
    """How many rows of each cluster a set of ``n`` has."""

    counts: Mapping[int, int]

    @property
    def n(self) -> int:
        """Rows in all."""
        return sum(self.counts.values())


def pools(labels: np.ndarray, *, rows: np.ndarray) -> dict[int, np.ndarray]:
    """``rows`` by their label; ``labels`` are those of all rows."""
    found = labels[rows]
    return {int(cluster): rows[found == cluster] for cluster in np.unique(found)}


def shares_of(real: Pools, *, clusters: Sequence[int]) -> dict[int, float]:
    """The share of each of these clusters among the real rows of all of them."""
    sizes = {cluster: len(real.get(cluster, ())) for cluster in clusters}
    total = max(1, sum(sizes.values()))
    return {cluster: size / total for cluster, size in sizes.items()}


def quotas(shares: Mapping[int, float], *, available: Pools, most: int | None = None) -> Quotas:
    """The largest set, of at most ``most`` rows, that has these shares and needs no row of ``available`` twice.

    Counts are whole numbers: shares times the set's size, rounded down, what is missing given to the largest
    remainders.
    """
    limits = [len(available.get(cluster, ())) / share for cluster, share in shares.items() if share > 0]
    size = int(min([*limits, *([most] if most is not None else [])], default=0))
    exact = {cluster: share * size for cluster, share in shares.items()}
    counts = {cluster: int(value) for cluster, value in exact.items()}
    behind = sorted(exact, key=lambda cluster: (counts[cluster] - exact[cluster], cluster))
    for cluster in behind[: size - sum(counts.values())]:
        counts[cluster] = min(counts[cluster] + 1, len(available.get(cluster, ())))
    return Quotas(counts)


def draw(available: Pools, *, quotas: Quotas, rng: np.random.Generator) -> np.ndarray:
    """Rows without replacement, sorted: of each cluster its quota, or all where there are fewer."""
    parts = [
        rng.choice(available[cluster], size=min(count, len(available[cluster])), replace=False)
        for cluster, count in sorted(quotas.counts.items())
        if count and cluster in available
    ]
    return np.sort(np.concatenate([np.empty(0, np.int64), *parts])).astype(np.int64)
