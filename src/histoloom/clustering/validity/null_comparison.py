"""k-means on the data against k-means on data without clusters: five indices and stability, with intervals.

Each draw is a set of points split into two parts; each part is clustered by itself for every k. An index is computed
in both parts; stability is how far the two clusterings agree about all points of the draw. The draws are random
subsets of the real data, and sets of the same size from each null.

The nulls are data without clusters that otherwise resemble the data at hand.

Legend of shapes: N points, D features, S draws; M points drawn from a null, R directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from histoloom.clustering.results import Comparison, Excess, NullComparison
from histoloom.clustering.validity.indices import INDICES, LARGER_IS_BETTER
from histoloom.clustering.validity.sweep import agreement, nearest, sweep
from histoloom.progress import meter
from histoloom.seeding import numpy_generator

LEVEL = 0.95
STABILITY = ("agreement", "weakest")
_MOST_FEATURES = 1000  # with more, the nulls are fitted to as many points as are drawn, to bound memory and time


Draw = Callable[[int, np.random.Generator], np.ndarray]
"""``m`` points, (M, D)."""


def gaussian_null(x_ND: np.ndarray) -> Draw:
    """Gaussian points whose own mean and covariance are those of ``x_ND``, not only in expectation.

    Of Gaussian data, mean and covariance are all that there is to know: given these two, data drawn here have the very
    distribution of the given ones (where m = N), so that the comparison is fair however many the features. Beyond
    m - 1 directions only the widest are kept.
    """
    mean_D = x_ND.mean(0)
    _, scale_R, axes_RD = np.linalg.svd(x_ND - mean_D, full_matrices=False)
    scale_R = scale_R / np.sqrt(len(x_ND))

    def draw(m: int, rng: np.random.Generator) -> np.ndarray:
        r = min(len(scale_R), m - 1)
        noise_MR = rng.standard_normal((m, r))
        frame_MR = np.linalg.qr(noise_MR - noise_MR.mean(0))[0]
        drawn_MD: np.ndarray = (frame_MR * (scale_R[:r] * np.sqrt(m))) @ axes_RD[:r] + mean_D
        return drawn_MD

    return draw


def permuted_null(x_ND: np.ndarray) -> Draw:
    """Each feature of ``x_ND`` permuted by itself: the same values in every feature, and nothing in common; m <= N."""

    def draw(m: int, rng: np.random.Generator) -> np.ndarray:
        return np.stack([rng.permutation(column_N)[:m] for column_N in x_ND.T], axis=1)

    return draw


def components_null(x_ND: np.ndarray) -> Draw:
    """Each principal component of ``x_ND`` permuted by itself: the covariance, and the skew along its axes; m <= N."""
    mean_D = x_ND.mean(0)
    axes_RD = np.linalg.svd(x_ND - mean_D, full_matrices=False)[2]
    permuted = permuted_null((x_ND - mean_D) @ axes_RD.T)
    return lambda m, rng: permuted(m, rng) @ axes_RD + mean_D


NULLS: Mapping[str, Callable[[np.ndarray], Draw]] = {
    "gaussian": gaussian_null,
    "permuted": permuted_null,
    "components": components_null,
}


def compare(x_ND: np.ndarray, *, ks: Sequence[int], seed: int, draws: int, points: int) -> dict[int, NullComparison]:
    """The comparison for each k, from ``draws`` sets of at most ``points`` points of the data and of each null."""
    rng = numpy_generator(seed, "clusters", "nulls", "data")
    part = min(points, len(x_ND)) // 2
    if x_ND.shape[1] > _MOST_FEATURES:
        x_ND = x_ND[np.sort(rng.permutation(len(x_ND))[: 2 * part])]
    with meter("clusters against none", total=draws * (1 + len(NULLS))) as progress:

        def drawn(points_MD: np.ndarray) -> dict[int, dict[str, np.ndarray | float]]:
            progress.advance(1)
            return _measure(points_MD[:part], points_MD[part:], ks=ks)

        real = [drawn(x_ND[rng.permutation(len(x_ND))[: 2 * part]]) for _ in range(draws)]
        nulls = {}
        for name, fit in NULLS.items():
            rng, draw = numpy_generator(seed, "clusters", "nulls", name), fit(x_ND)
            nulls[name] = [drawn(rng.permutation(draw(2 * part, rng))) for _ in range(draws)]
    share = 2 * part / len(x_ND)
    return {
        k: _findings(
            k,
            real=[draw[k] for draw in real],
            nulls={name: [draw[k] for draw in found] for name, found in nulls.items()},
            share=share,
        )
        for k in ks
    }


def _measure(
    first_ND: np.ndarray, second_ND: np.ndarray, *, ks: Sequence[int]
) -> dict[int, dict[str, np.ndarray | float]]:
    """For each k: each index in both parts, (2,), and the stability and the extreme sizes of the draw."""
    both_ND = np.concatenate([first_ND, second_ND])
    sweeps = [sweep(part_ND, ks=ks) for part_ND in (first_ND, second_ND)]
    result: dict[int, dict[str, np.ndarray | float]] = {}
    for k in ks:
        parts = [found[k] for found in sweeps]
        agreed = agreement(*(nearest(both_ND, centres_KD=part.centres_KD) for part in parts), k=k)
        sizes = np.concatenate([part.sizes_K for part in parts]) / len(first_ND)
        result[k] = {index: np.array([part.indices[index] for part in parts]) for index in INDICES}
        result[k] |= {"agreement": agreed.ari, "weakest": agreed.weakest}
        result[k] |= {"smallest": float(sizes.min()), "largest": float(sizes.max())}
    return result


def _findings(
    k: int, *, real: Sequence[Mapping[str, Any]], nulls: Mapping[str, Sequence[Mapping[str, Any]]], share: float
) -> NullComparison:
    def values(draws: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
        return np.array([draw[name] for draw in draws])

    def compared(name: str) -> Comparison:
        ours, draws = values(real, name), len(real)
        theirs = {null: values(draws, name) for null, draws in nulls.items()}
        excess = _index_excess if name in INDICES else _stability_excess
        return Comparison(
            real=float(ours.mean()),
            deviation=float(ours.reshape(draws, -1).mean(axis=1).std(ddof=1)),
            null={null: float(drawn.mean()) for null, drawn in theirs.items()},
            excess={null: excess(ours, drawn, share=share, name=name) for null, drawn in theirs.items()},
        )

    return NullComparison(
        k=k,
        indices={name: compared(name) for name in INDICES},
        stability={name: compared(name) for name in STABILITY},
        smallest=float(values(real, "smallest").mean()),
        largest=float(values(real, "largest").mean()),
    )


def _index_excess(real_S2: np.ndarray, null_S2: np.ndarray, *, share: float, name: str) -> Excess:
    """In deviations of the null's draws. How much the data at hand vary by chance shows between a draw's two parts."""
    sign = 1 if LARGER_IS_BETTER[name] else -1
    real_S, null_S = sign * real_S2.mean(1), sign * null_S2.mean(1)
    chance = float(((real_S2[:, 0] - real_S2[:, 1]) ** 2).mean()) / 4
    scale = float(null_S.std(ddof=1)) or 1.0
    return _interval(real_S, null_S, chance=share * chance, scale=scale)


def _stability_excess(real_S: np.ndarray, null_S: np.ndarray, *, share: float, name: str) -> Excess:
    """In its own unit. Chance among data sets is taken from the null, whose every draw is another one."""
    assert name in STABILITY, name
    return _interval(real_S, null_S, chance=share * float(null_S.var(ddof=1)), scale=1.0)


def _interval(real_S: np.ndarray, null_S: np.ndarray, *, chance: float, scale: float) -> Excess:
    """Student's interval of the difference of means; ``chance``: variance of the data themselves at their number."""
    draws = len(real_S)
    variance = chance + (float(real_S.var(ddof=1)) + float(null_S.var(ddof=1))) / draws
    half = float(student.ppf((1 + LEVEL) / 2, draws - 1)) * math.sqrt(variance)
    difference = float(real_S.mean() - null_S.mean())
    return Excess(value=difference / scale, low=(difference - half) / scale, high=(difference + half) / scale)
