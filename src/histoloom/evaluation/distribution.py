"""Two sets of features compared by every set metric, each number beside its real-against-real floor.

Legend of shapes: N and M images, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from histoloom.evaluation.set_metrics import SET_METRICS, Estimate, SetMetric
from histoloom.seeding import Part, numpy_generator

LEAST = 10
"""images; fewer on a side are not compared"""
FEW = 50
INCEPTION = "inception"

Pair = tuple[np.ndarray, np.ndarray]
"""Features of a real set (N, D) and of the set that is compared with it (M, D)."""


def entries(
    values: Sequence[Pair], floors: Sequence[Pair], *, extractor: str, seed: int, path: Sequence[Part]
) -> list[dict[str, Any]]:
    """An entry for each number: ``{"metric", "extractor", "value", "interval", "floor", "floor_interval", "better",
    "n_real", "n_synthetic", "n_floor": [real, other real], "notes"}``.

    ``values`` are pairs of real and synthetic, ``floors`` of real and other real images: equal draws of the same sets,
    of whose numbers and limits the means are given. ``path`` names the random stream of the intervals under ``seed``.
    """
    found = []
    for metric in SET_METRICS:
        estimates = _mean(metric, values, seed=seed, path=[*path, extractor, "value"])
        floor = _mean(metric, floors, seed=seed, path=[*path, extractor, "floor"])
        for name, better in metric.values.items():
            found.append(
                {
                    "metric": title(name, extractor=extractor),
                    "extractor": extractor,
                    "value": estimates[name].value,
                    "interval": [estimates[name].low, estimates[name].high],
                    "floor": floor[name].value,
                    "floor_interval": [floor[name].low, floor[name].high],
                    "better": better,
                    "n_real": len(values[0][0]),
                    "n_synthetic": len(values[0][1]),
                    "n_floor": [len(floors[0][0]), len(floors[0][1])],
                    "notes": notes(metric, values[0], floors[0]),
                }
            )
    return found


def title(metric: str, *, extractor: str) -> str:
    """A Frechet distance is FID on Inception's features, and on no others."""
    return "fid" if metric == "frechet" and extractor.startswith(INCEPTION) else metric


def notes(metric: SetMetric, value: Pair, floor: Pair) -> list[str]:
    """What has to be known to read the numbers, in whole sentences."""
    found = []
    n, dimension = min(map(len, value)), value[0].shape[1]
    if n < FEW:
        found.append(f"{n} images are few: the interval says how unsure the number is.")
    if metric.moments and n <= dimension:
        found.append(
            f"{n} images are too few for {dimension:,} features: the distance is too large, by an amount that depends "
            "on how many they are; read it beside its floor only, never beside that of another number of images."
        )
    if metric.moments and min(map(len, floor)) < 0.8 * n:
        found.append("The floor has fewer images than the value, which makes it larger.")
    return found


def _mean(metric: SetMetric, pairs: Sequence[Pair], *, seed: int, path: Sequence[Part]) -> dict[str, Estimate]:
    draws = [
        metric.estimate(real_ND, other_MD, rng=numpy_generator(seed, *path, *metric.values, number))
        for number, (real_ND, other_MD) in enumerate(pairs)
    ]
    return {
        name: Estimate(
            *(float(np.mean([getattr(draw[name], part) for draw in draws])) for part in ("value", "low", "high"))
        )
        for name in metric.values
    }
