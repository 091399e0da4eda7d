"""The agreement of raters about the clusters' names: Cohen's kappa of two, Fleiss' kappa of three or more.

Names are free text; two names are the same where they differ only in case, spaces and Unicode form, or where the
raters' table of synonyms makes them one. The clusters that all of the compared raters named are compared. Each has the
same weight, or the weight of its patches, as if the raters had named patches.

kappa = (p - c) / (1 - c) for the observed agreement p and the agreement c by chance (Cohen 1960; Fleiss 1971). The
interval is Wilson's of p over the clusters, with c taken as known, as in Cohen's own standard error. With so few
clusters it covers better than a bootstrap (simulated with 10 to 14 clusters: 93 to 97 %, a bootstrap 90 to 92 %).
Where clusters are weighted by patches, their number in it is Kish's (sum w)^2 / sum w^2.

Shape suffixes: N clusters, C names, R raters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from typing import Literal

import numpy as np

from histoloom.names import LabelState

Z = 1.959963984540054
"""The normal quantile of a 95 % interval."""


@dataclass(frozen=True)
class Kappa:
    """``value`` and its 95 % interval, None where chance alone would agree on everything; ``observed`` is p, 0..1."""

    observed: float
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Agreement:
    """The kappas of some raters over ``clusters`` clusters of ``patches`` patches, equally weighted and by patches.

    ``kind`` is Cohen for two raters, Fleiss for more. Both kappas are None where all of them named no common cluster.
    """

    raters: tuple[str, ...]
    kind: Literal["Cohen", "Fleiss"]
    clusters: int
    patches: int
    equal: Kappa | None
    by_patches: Kappa | None


@dataclass(frozen=True)
class Disagreement:
    """A cluster that raters named differently: the names by rater."""

    cluster: int
    names: Mapping[str, str]


def cohen(first_N: Sequence[str], second_N: Sequence[str], *, weights_N: Sequence[float]) -> Kappa:
    """Cohen's kappa of two raters' names of the same clusters (Cohen 1960, equation 1), weighted."""
    w_N = np.asarray(weights_N, dtype=np.float64) / np.sum(weights_N)
    first, second = np.asarray(first_N), np.asarray(second_N)
    chance = sum(float(w_N[first == name].sum() * w_N[second == name].sum()) for name in sorted({*first_N, *second_N}))
    return _kappa(float(w_N @ (first == second)), chance=chance, w_N=w_N)


def fleiss(counts_NC: np.ndarray, *, weights_N: Sequence[float]) -> Kappa:
    """Fleiss' kappa (1971, equations 1 to 8) of how many raters gave each cluster each name, weighted.

    Each of the N rows sums to the same number of raters, at least 2.
    """
    w_N = np.asarray(weights_N, dtype=np.float64) / np.sum(weights_N)
    raters = int(counts_NC[0].sum())
    assert raters >= 2, "agreement takes two raters"
    assert (counts_NC.sum(axis=1) == raters).all(), "every rater names every cluster"
    agreed_N = (counts_NC * (counts_NC - 1)).sum(axis=1) / (raters * (raters - 1))
    shares_C = (w_N @ counts_NC) / raters
    return _kappa(float(w_N @ agreed_N), chance=float(shares_C @ shares_C), w_N=w_N)


def counts(names_RN: Sequence[Sequence[str]]) -> np.ndarray:
    """How many raters gave each cluster each name, int (N, C)."""
    names = sorted({name for of_rater in names_RN for name in of_rater})
    counts_NC = np.zeros((len(names_RN[0]), len(names)), dtype=np.int64)
    for of_rater in names_RN:
        for row, name in enumerate(of_rater):
            counts_NC[row, names.index(name)] += 1
    return counts_NC


def _kappa(observed: float, *, chance: float, w_N: np.ndarray) -> Kappa:
    """(p - c) / (1 - c) with Wilson's score interval (1927) of p, whose n need not be whole."""
    if chance > 1 - 1e-12:
        return Kappa(observed, None, None, None)
    n = 1 / float(w_N @ w_N)  # Kish's effective number; the weights sum to 1
    scale, centre = 1 + Z**2 / n, observed + Z**2 / (2 * n)
    half_width = Z * sqrt(observed * (1 - observed) / n + Z**2 / (4 * n**2))
    low, high = max(0.0, (centre - half_width) / scale), min(1.0, (centre + half_width) / scale)
    value, low, high = ((share - chance) / (1 - chance) for share in (observed, low, high))
    return Kappa(observed, value, low, high)


def agreements(state: LabelState, *, sizes: Sequence[int]) -> list[Agreement]:
    """Of each two raters, and of all together where they are three or more; ``sizes`` are the clusters' patches."""
    names = {rater: compared_names(state, rater=rater) for rater in state.raters}
    names = {rater: of_rater for rater, of_rater in names.items() if of_rater}
    groups = [*combinations(names, 2), *([tuple(names)] if len(names) > 2 else [])]
    result = []
    for raters in groups:
        common = sorted(set.intersection(*(set(names[rater]) for rater in raters)))
        names_RN = [[names[rater][cluster] for cluster in common] for rater in raters]
        patches = [float(sizes[cluster]) for cluster in common]
        equal, by_patches = (_kappa_of(names_RN, weights_N=weights) for weights in ([1.0] * len(common), patches))
        kind: Literal["Cohen", "Fleiss"] = "Cohen" if len(raters) == 2 else "Fleiss"
        result.append(Agreement(raters, kind, len(common), int(sum(patches)), equal, by_patches))
    return result


def _kappa_of(names_RN: Sequence[Sequence[str]], *, weights_N: Sequence[float]) -> Kappa | None:
    """Cohen's kappa of two raters, Fleiss' of more; None where there is nothing to compare."""
    if not sum(weights_N):
        return None
    if len(names_RN) == 2:
        return cohen(names_RN[0], names_RN[1], weights_N=weights_N)
    return fleiss(counts(names_RN), weights_N=weights_N)


def compared_names(state: LabelState, *, rater: str) -> dict[int, str]:
    """The names that ``rater`` gave, by cluster, in the form in which they are compared."""
    return {cluster: state.compared(label.name) for cluster, label in state.labels(rater).items() if label.name}


def disagreements(state: LabelState) -> list[Disagreement]:
    """The clusters that two raters or more named, and not all the same."""
    result = []
    for cluster in range(state.k):
        names = {rater: state.labels(rater)[cluster].name for rater in state.raters}
        names = {rater: name for rater, name in names.items() if name}
        if len({state.compared(name) for name in names.values()}) > 1:
            result.append(Disagreement(cluster, names))
    return result


def sentences(state: LabelState, *, sizes: Sequence[int]) -> tuple[str, ...]:
    """How far raters agree, and on which clusters they do not, in words; empty where fewer than two named any."""
    kappas = tuple(sentence(agreement) for agreement in agreements(state, sizes=sizes))
    differences = tuple(
        f"Group {one.cluster}: " + ", ".join(f"{name!r} ({rater})" for rater, name in one.names.items())
        for one in disagreements(state)
    )
    return kappas + differences


def sentence(agreement: Agreement) -> str:
    """One agreement in words, with kappas and their intervals."""
    kind = "Cohen's kappa" if agreement.kind == "Cohen" else "Fleiss' kappa"
    raters = " and ".join(map(repr, agreement.raters))
    if agreement.equal is None or agreement.by_patches is None:
        return f"{raters}: no group that all of them named"
    equal, by_patches = (
        "not defined (one name for everything)"
        if kappa.value is None
        else f"{kappa.value:.2f} ({kappa.low:.2f} to {kappa.high:.2f})"
        for kappa in (agreement.equal, agreement.by_patches)
    )
    return (
        f"{raters}: {kind} {equal} over {agreement.clusters} groups, "
        f"{by_patches} weighted by their {agreement.patches:,} patches"
    )
