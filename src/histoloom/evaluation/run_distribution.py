"""The samples of a run against its real patches, as distributions: over all clusters of a k, and cluster by cluster.

Real are held-out patches, and the floor is patches of the training slides against them; where too few are held out,
real are training patches, and the floor is a random half of them against the other. Over all clusters both the samples
and the floor's patches have every cluster by its frequency among the real patches (evaluation/proportions.py), in equal
numbers, and what is given is the mean over ``DRAWS`` such draws. Legend of shapes: N patches, M samples, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from histoloom.evaluation.distribution import LEAST, Pair, entries
from histoloom.evaluation.proportions import Pools, Quotas, draw, pools, quotas, shares_of
from histoloom.seeding import Part, numpy_generator

DRAWS = 4
LEAST_CLUSTER = 20
"""patches and samples of a cluster; with fewer it is not compared by itself"""
FLOORS = {"holdout": "patches of the training slides", "train": "random halves of the training patches"}


@dataclass(frozen=True)
class Sides:
    """Rows of real patches, by what they are for: ``target`` is compared with, ``floor`` is compared as samples are."""

    split: str
    target: np.ndarray
    floor: np.ndarray


@dataclass(frozen=True)
class Featured:
    """Features by row: real (N, D), of which only the chosen rows are filled, and synthetic (M, D)."""

    extractor: str
    real_ND: np.ndarray
    synthetic_MD: np.ndarray


def choose_sides(splits: np.ndarray, *, most: int, seed: int) -> Sides:
    """At most ``most`` rows on each side, drawn at random from the splits of all patches."""
    held_out, trained = (
        numpy_generator(seed, "evaluation", "distribution", split).permutation(np.flatnonzero(splits == split))
        for split in ("holdout", "train")
    )
    if len(held_out) >= 2 * LEAST:
        return Sides("holdout", np.sort(held_out[:most]), np.sort(trained[:most]))
    half = min(most, len(trained) // 2)
    return Sides("train", np.sort(trained[:half]), np.sort(trained[half : 2 * half]))


def run_entries(
    features: Featured, *, sides: Sides, labels: np.ndarray, samples: Pools, k: int, seed: int
) -> list[dict[str, Any]]:
    """Entries (evaluation/distribution.py) with ``"k", "cluster" (null: all), "real_split", "floor_from", "draws"``.

    ``labels`` are the clusters of all patches, ``samples`` the rows of samples of each cluster. Empty where there is
    too little.
    """
    target, floor = (pools(labels, rows=rows) for rows in (sides.target, sides.floor))
    sets: dict[int | None, Rows] = {}
    sets[None] = _over_all(target, floor=floor, samples=samples, path=["evaluation", "distribution", k], seed=seed)
    sets |= {cluster: _of_cluster(cluster, target, floor=floor, samples=samples) for cluster in sorted(samples)}
    found = []
    for cluster, rows in sets.items():
        for entry in _measured(features, rows, seed=seed, path=["evaluation", "distribution", k, str(cluster)]):
            about = {"k": k, "cluster": cluster, "real_split": sides.split, "floor_from": FLOORS[sides.split]}
            found.append(about | {"draws": len(rows.synthetic)} | entry)
    return found


@dataclass(frozen=True)
class Rows:
    """Rows of real patches, and draws of samples and of the floor's patches, that are compared with them."""

    target: np.ndarray
    synthetic: Sequence[np.ndarray]
    floor: Sequence[np.ndarray]

    @property
    def enough(self) -> bool:
        """Whether every set has images enough to be compared."""
        return min([len(self.target), *map(len, (*self.synthetic, *self.floor))], default=0) >= LEAST


def _over_all(target: Pools, *, floor: Pools, samples: Pools, path: Sequence[Part], seed: int) -> Rows:
    shares = shares_of(target, clusters=sorted(samples))
    wanted = quotas(shares, available=samples)
    rows = np.concatenate([np.empty(0, np.int64), *(target[c] for c in sorted(shares) if c in target)])
    return Rows(
        np.sort(rows).astype(np.int64),
        _draws(samples, wanted=wanted, seed=seed, path=[*path, "samples"]),
        _draws(floor, wanted=wanted, seed=seed, path=[*path, "floor"]),
    )


def _draws(available: Pools, *, wanted: Quotas, seed: int, path: Sequence[Part]) -> list[np.ndarray]:
    return [draw(available, quotas=wanted, rng=numpy_generator(seed, *path, number)) for number in range(DRAWS)]


def _of_cluster(cluster: int, target: Pools, *, floor: Pools, samples: Pools) -> Rows:
    none = np.empty(0, np.int64)
    sides: Mapping[str, np.ndarray] = {"target": target.get(cluster, none), "floor": floor.get(cluster, none)}
    if min(map(len, (*sides.values(), samples[cluster]))) < LEAST_CLUSTER:
        return Rows(none, [], [])
    n = min(len(samples[cluster]), len(sides["floor"]))
    # Every slide in its share: rows are in the order of slides.
    every = np.linspace(0, len(sides["floor"]) - 1, n).round().astype(np.int64)
    return Rows(sides["target"], [samples[cluster][:n]], [sides["floor"][every]])


def _measured(features: Featured, rows: Rows, *, seed: int, path: Sequence[Part]) -> list[dict[str, Any]]:
    if not rows.enough:
        return []
    target_ND = features.real_ND[rows.target]
    values: list[Pair] = [(target_ND, features.synthetic_MD[some]) for some in rows.synthetic]
    floors: list[Pair] = [(target_ND, features.real_ND[some]) for some in rows.floor]
    return entries(values, floors, extractor=features.extractor, seed=seed, path=path)
