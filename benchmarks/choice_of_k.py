"""How often the choice of k is right: false alarms on data without clusters, and hits on separated mixtures.

    python benchmarks/choice_of_k.py [--seeds 20] [--first 1000] [--kinds gaussian-8 gamma-8 mixture]

Prints a line a kind. The tests use the same data with seeds below 100; settings were chosen on others. Legend of
shapes: N points, D features, K components.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from histoloom.clustering.validity.decision import NullDecision, decide_by_nulls
from histoloom.seeding import numpy_generator

FEW, MANY = (4, 7, 10, 13), tuple(range(4, 19))
DIMENSIONS = (2, 3, 8, 32, 64)
COMPONENTS = tuple(range(6, 17))


def turned(x_ND: np.ndarray, *, rng: np.random.Generator, decay: float = 0.0) -> np.ndarray:
    """Features scaled by falling powers (1, 2^-decay, 3^-decay, ...) and turned at random."""
    d = x_ND.shape[1]
    return x_ND * np.arange(1, d + 1.0) ** -decay @ np.linalg.qr(rng.standard_normal((d, d)))[0]


STRUCTURELESS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "gaussian-2": lambda rng, n: rng.standard_normal((n, 2)),
    "gaussian-8": lambda rng, n: rng.standard_normal((n, 8)),
    "gaussian-64": lambda rng, n: rng.standard_normal((n, 64)),
    "elongated-8": lambda rng, n: turned(rng.standard_normal((n, 8)), rng=rng, decay=1.0),
    "elongated-64": lambda rng, n: turned(rng.standard_normal((n, 64)), rng=rng, decay=1.0),
    "uniform-2": lambda rng, n: rng.uniform(size=(n, 2)),
    "uniform-3": lambda rng, n: rng.uniform(size=(n, 3)),
    "uniform-8": lambda rng, n: rng.uniform(size=(n, 8)),
}
"""What the tests ask to be called structureless."""

HARD: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "gamma-2": lambda rng, n: rng.gamma(2.0, size=(n, 2)),
    "gamma-2, turned": lambda rng, n: turned(rng.gamma(2.0, size=(n, 2)), rng=rng, decay=0.5),
    "gamma-8, turned": lambda rng, n: turned(rng.gamma(2.0, size=(n, 8)), rng=rng, decay=0.5),
    "gamma-64, turned": lambda rng, n: turned(rng.gamma(2.0, size=(n, 64)), rng=rng, decay=0.5),
    "lognormal-2": lambda rng, n: np.exp(0.8 * turned(rng.standard_normal((n, 2)), rng=rng, decay=1.0)),
    "lognormal-8": lambda rng, n: np.exp(0.8 * turned(rng.standard_normal((n, 8)), rng=rng, decay=1.0)),
    "student-8": lambda rng, n: rng.standard_normal((n, 8)) / np.sqrt(rng.chisquare(4, (n, 1)) / 4),
    "uniform-2, turned": lambda rng, n: turned(rng.uniform(size=(n, 2)), rng=rng, decay=0.5),
    "uniform-8, turned": lambda rng, n: turned(rng.uniform(size=(n, 8)), rng=rng, decay=0.5),
    "arc-2": lambda rng, n: arc(rng, n),
}
"""Without clusters, but neither Gaussian nor of independent features: measured, not promised."""


def arc(rng: np.random.Generator, n: int) -> np.ndarray:
    """A bent band in two dimensions, (N, 2)."""
    angle_N = np.pi * rng.uniform(size=n)
    return np.stack([np.cos(angle_N), np.sin(angle_N)], axis=1) + 0.15 * rng.standard_normal((n, 2))


def mixture(rng: np.random.Generator, n: int, *, k: int, d: int, separation: float = 6.0) -> np.ndarray:
    """Gaussian components of unequal weights (1:3 at most) and spreads (0.6 to 1.4), (N, D).

    Centres are random, no two nearer than ``separation`` times the mean of their spreads.
    """
    spread_K = rng.uniform(0.6, 1.4, k)
    width, centres = separation / np.sqrt(2 * d), [np.zeros(d)]
    while len(centres) < k:
        new_D, place = width * rng.standard_normal(d), len(centres)
        apart = np.linalg.norm(np.array(centres) - new_D, axis=1)
        if np.all(apart > separation * (spread_K[:place] + spread_K[place]) / 2):
            centres.append(new_D)
        width *= 1.002
    weights_K = rng.uniform(0.5, 1.5, k)
    component_N = rng.choice(k, n, p=weights_K / weights_K.sum())
    return np.array(centres)[component_N] + spread_K[component_N, None] * rng.standard_normal((n, d))


@dataclass(frozen=True)
class Size:
    """Points of the data, and draws of points as ``decide_by_nulls`` takes them."""

    n: int = 400
    draws: int = 5
    points: int = 400


SMALL = Size()


def chosen(x_ND: np.ndarray, *, ks: Sequence[int], seed: int, size: Size = SMALL) -> NullDecision:
    """The choice among ``ks``."""
    return decide_by_nulls(x_ND, ks=ks, seed=seed, draws=size.draws, points=size.points)


def false_alarms(kind: str, *, seeds: Sequence[int], size: Size = SMALL) -> int:
    """How many of ``seeds`` find evidence of clusters where there are none."""
    make = (STRUCTURELESS | HARD)[kind]
    found = [chosen(make(numpy_generator(s, "data", kind), size.n), ks=FEW, seed=s, size=size).k for s in seeds]
    return sum(k is not None for k in found)


def misses(*, seeds: Sequence[int], size: Size = SMALL, separation: float = 6.0) -> list[tuple[int, int, int | None]]:
    """(components, dimensions, k) of each mixture whose k is not within 1."""
    wrong = []
    for s in seeds:
        k, d = COMPONENTS[s % len(COMPONENTS)], DIMENSIONS[s % len(DIMENSIONS)]
        x_ND = mixture(numpy_generator(s, "data", "mixture"), size.n, k=k, d=d, separation=separation)
        found = chosen(x_ND, ks=MANY, seed=s, size=size).k
        if found is None or abs(found - k) > 1:
            wrong.append((k, d, found))
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=1000)
    parser.add_argument("--n", type=int, default=SMALL.n)
    parser.add_argument("--draws", type=int, default=SMALL.draws)
    parser.add_argument("--points", type=int, default=SMALL.points)
    parser.add_argument("--separation", type=float, default=6.0)
    parser.add_argument("--kinds", nargs="+", default=[*STRUCTURELESS, *HARD, "mixture"])
    given = parser.parse_args()
    seeds = range(given.first, given.first + given.seeds)
    size = Size(given.n, given.draws, given.points)
    for kind in given.kinds:
        start = time.perf_counter()
        if kind == "mixture":
            wrong = misses(seeds=seeds, size=size, separation=given.separation)
            result = f"{given.seeds - len(wrong)} of {given.seeds} within 1; misses (K, D, k): {wrong}"
        else:
            result = f"{false_alarms(kind, seeds=seeds, size=size)} of {given.seeds} called clusters"
        print(f"{kind}: {result}; {(time.perf_counter() - start) / given.seeds:.2f} s each", flush=True)


if __name__ == "__main__":
    main()
