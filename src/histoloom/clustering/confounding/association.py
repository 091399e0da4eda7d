"""What clusters know of slide, patient and stain: mutual information beside a permutation null.

Patches of one slide lie near each other, so that clusters of real tissue beat a null that permutes patches whenever
slides hold different tissue. What counts is therefore the size of the effect: the share of the clusters' entropy that a
factor explains beyond its null. Factors of whole slides (patient, the slide's stain) have a null that permutes whole
slides, which asks what they explain beyond any other grouping of the same slides. Entropies are in nats.

Shapes: N patches, K clusters, L levels of a factor, S slides, P permutations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from histoloom.clustering.confounding.stain import SlideStain
from histoloom.clustering.results import Association, OneSlide

PERMUTATIONS = 200
SIGNIFICANT = 0.05
HIGH = 0.95
"""Quantile of the null that is reported as its upper bound."""

ONE_SLIDE, ONE_SLIDE_PATCHES, LEAST_SLIDES = 0.9, 10, 3
"""A cluster is of one slide where so much of it, and so many patches, come from there, among so many slides."""

WARN_ABOVE: Mapping[str, float] = {"slide": 0.1, "patient": 0.1, "slide_stain": 0.1}
"""Least excess that is warned of (docs/explanation/confounding.md). A patch's own stain is tissue: no warning."""

Null = Literal["patches", "slides"]


@dataclass(frozen=True)
class Factor:
    """Something that clusters should not follow: its level of each patch, (N,) int64 from 0, and what is permuted."""

    name: str
    codes_N: np.ndarray
    null: Null


def association(
    labels: Mapping[int, np.ndarray], *, factor: Factor, slides_N: np.ndarray, rng: np.random.Generator
) -> list[Association]:
    """Each k's clusters, (N,) by k, against ``factor``; ``slides_N`` numbers the patches' slides from 0."""
    null_PK = np.empty((PERMUTATIONS, len(labels)))
    for row_K in null_PK:
        shuffled_N = permuted(factor, slides_N=slides_N, rng=rng)
        row_K[:] = [mutual_information(labels_N, shuffled_N) for labels_N in labels.values()]
    return [
        _association(labels_N, k=k, factor=factor, null_P=null_P)
        for (k, labels_N), null_P in zip(labels.items(), null_PK.T, strict=True)
    ]


def permuted(factor: Factor, *, slides_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The factor's levels with patches, or whole slides, changing places, (N,)."""
    if factor.null == "patches":
        return rng.permutation(factor.codes_N)
    slides, first_S, place_N = np.unique(slides_N, return_index=True, return_inverse=True)
    return factor.codes_N[first_S][rng.permutation(len(slides))][place_N]


def mutual_information(first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Of two labellings with whole numbers from 0."""
    width = int(second_N.max()) + 1
    joint = np.bincount(first_N * width + second_N, minlength=(int(first_N.max()) + 1) * width).reshape(-1, width)
    return float(_entropy(joint.sum(1)) + _entropy(joint.sum(0)) - _entropy(joint))


def _entropy(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def _association(labels_N: np.ndarray, *, k: int, factor: Factor, null_P: np.ndarray) -> Association:
    mi, entropy = mutual_information(labels_N, factor.codes_N), _entropy(np.bincount(labels_N))
    mean, deviation = float(null_P.mean()), float(null_P.std())
    room = entropy - mean
    excess = max(0.0, (mi - mean) / room) if room > 1e-12 else 0.0
    p = (1 + int((null_P >= mi - 1e-12).sum())) / (1 + len(null_P))
    return Association(
        k=k,
        factor=factor.name,
        null=factor.null,
        n=len(labels_N),
        levels=len(np.unique(factor.codes_N)),
        mi=mi,
        nmi=float(normalized_mutual_info_score(factor.codes_N, labels_N)),
        ami=float(adjusted_mutual_info_score(factor.codes_N, labels_N)),
        share=mi / entropy if entropy > 0 else 0.0,
        excess=excess,
        null_mean=mean,
        null_high=float(np.quantile(null_P, HIGH)),
        z=(mi - mean) / deviation if deviation > 1e-12 else None,
        p=p,
        warns=p <= SIGNIFICANT and excess >= WARN_ABOVE.get(factor.name, np.inf),
    )


def one_slide_clusters(labels_N: np.ndarray, *, k: int, slides_N: Sequence[str] | np.ndarray) -> list[OneSlide]:
    """The clusters of ``k`` that are (almost) of one slide alone; none where there are too few slides to tell."""
    names, codes_N = np.unique(np.asarray(slides_N, dtype=str), return_inverse=True)
    if len(names) < LEAST_SLIDES:
        return []
    found = []
    for cluster in range(k):
        counts_S = np.bincount(codes_N[labels_N == cluster], minlength=len(names))
        n, most = int(counts_S.sum()), int(counts_S.argmax())
        if n >= ONE_SLIDE_PATCHES and counts_S[most] >= ONE_SLIDE * n:
            found.append(
                OneSlide(k=k, cluster=cluster, slide=str(names[most]), share=float(counts_S[most] / n), patches=n)
            )
    return found


def slide_stain_groups(stains: Mapping[str, SlideStain]) -> dict[str, int]:
    """Slides by the balance of their two stains: two to four groups of like size, a quarter of the slides at least."""
    ranked = sorted(stains, key=lambda slide: (stains[slide].balance, slide))
    groups = min(max(len(ranked) // 4, 2), 4)
    return {slide: place * groups // len(ranked) for place, slide in enumerate(ranked)}


def by_quantile(values_N: np.ndarray, *, groups: int) -> np.ndarray:
    """Which of ``groups`` quantile bins each value falls into, (N,) int64 from 0; equal values stay together."""
    edges = np.unique(np.quantile(values_N, np.arange(1, groups) / groups))
    return np.searchsorted(edges, values_N, side="right").astype(np.int64)


_WHAT = {
    "slide": "which slide a patch is from explains {excess} % of the clusters (warned of from {least} %)",
    "patient": "which patient a slide is from explains {excess} % of the clusters beyond what slides do (p = {p:.3f})",
    "slide_stain": "how a slide is stained explains {excess} % of the clusters beyond what slides do (p = {p:.3f})",
}
ADVICE = (
    "Either these slides hold different tissue, or the clusters follow slides: compare the clusters' patches by eye; "
    "then patches.stain=macenko, more slides, or clusters.independence=4 may help"
)


def warnings_of(k: int, *, associations: Sequence[Association], one_slide: Sequence[OneSlide]) -> list[str]:
    """What is wrong at ``k``, a sentence each, and what to do; empty where nothing is."""
    said = [
        _WHAT[found.factor].format(
            excess=round(100 * found.excess), least=round(100 * WARN_ABOVE[found.factor]), p=found.p
        )
        for found in associations
        if found.k == k and found.warns
    ]
    said += [
        f"{round(100 * found.share)} % of the {found.patches:,} patches of cluster {found.cluster} are of one slide, "
        f"{found.slide}"
        for found in one_slide
        if found.k == k
    ]
    return [*(f"{text[0].upper()}{text[1:]}." for text in said), f"{ADVICE}."] if said else []
