"""What clusters share with slide, patient, stain and colour: mutual information, against a permutation null.

Patches of one slide lie near each other, so that clusters of real tissue beat a null that permutes patches whenever
slides hold different tissue. What counts is therefore the size of the effect: the share of the clusters' entropy that a
factor explains beyond its null. Factors of whole slides (patient, the slide's stain) have a null that permutes whole
slides, which asks what they explain beyond any other grouping of the same slides. Entropies are in nats.

Stain is measured as mean optical density of haematoxylin and eosin: light falls off by the law of Beer and Lambert, and
its density is split by the directions of scikit-image (Ruifrok & Johnston 2001), as in ``slides.stain.augment``.

Colour has no levels to permute: the clusters are compared with those that k-means finds in colour alone.

Shapes: N patches, H x W px, 3 channels, K clusters, L levels of a factor, S slides, P permutations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from skimage.color import hed_from_rgb
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from histoloom.clustering.results import Association, ColourAgreement, OneSlide
from histoloom.seeding import derive

PERMUTATIONS = 200
SIGNIFICANT = 0.05
HIGH = 0.95
"""Quantile of the null that is reported as its upper bound."""

ONE_SLIDE, ONE_SLIDE_PATCHES, LEAST_SLIDES = 0.9, 10, 3
"""A cluster is of one slide where so much of it, and so many patches, come from there, among so many slides."""

WARN_ABOVE: Mapping[str, float] = {"slide": 0.1, "patient": 0.1, "slide_stain": 0.1}
"""Least excess that is warned of (docs/explanation/confounding.md). A patch's own stain is tissue: no warning."""

COLOUR_WARN_ABOVE = 0.75
"""Least AMI with k-means on colour or stain that is warned of (docs/explanation/confounding.md)."""

COLOUR_STARTS = 8
"""Of k-means on colour; the start that agrees best counts, since several partitions of colour can be equally good."""

PIXELS = 64
"""Pixels sampled along each side: a mean needs no more."""

TISSUE_DENSITY = 0.15
"""Mean optical density (natural logarithm) from which a pixel counts as tissue: glass is below 0.1."""

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
    clusters = []
    for cluster in range(k):
        counts_S = np.bincount(codes_N[labels_N == cluster], minlength=len(names))
        n, most = int(counts_S.sum()), int(counts_S.argmax())
        if n >= ONE_SLIDE_PATCHES and counts_S[most] >= ONE_SLIDE * n:
            clusters.append(
                OneSlide(k=k, cluster=cluster, slide=str(names[most]), share=float(counts_S[most] / n), patches=n)
            )
    return clusters


def slide_stain_groups(stains: Mapping[str, SlideStain]) -> dict[str, int]:
    """Slides by the balance of their two stains: two to four groups of like size, a quarter of the slides at least."""
    ranked = sorted(stains, key=lambda slide: (stains[slide].balance, slide))
    groups = min(max(len(ranked) // 4, 2), 4)
    return {slide: place * groups // len(ranked) for place, slide in enumerate(ranked)}


def by_quantile(values_N: np.ndarray, *, groups: int) -> np.ndarray:
    """Which of ``groups`` quantile bins each value falls into, (N,) int64 from 0; equal values stay together."""
    edges = np.unique(np.quantile(values_N, np.arange(1, groups) / groups))
    return np.searchsorted(edges, values_N, side="right").astype(np.int64)


_WARNINGS = {
    "slide": "Which slide a patch is from explains {excess} % of the clusters (warned of from {least} %).",
    "patient": "Which patient a slide is from explains {excess} % of the clusters beyond what slides do (p = {p:.3f}).",
    "slide_stain": "How a slide is stained explains {excess} % of the clusters beyond what slides do (p = {p:.3f}).",
}
ADVICE = (
    "Either these slides hold different tissue, or the clusters follow slides: compare the clusters' patches by eye; "
    "then patches.stain=macenko, more slides, or a higher clusters.independence may help."
)

_COLOUR_WARNING = (
    "Colour explains most of the clusters: k-means on {closest} alone finds nearly the same ones (AMI {ami:.2f}, "
    "warned of from {least:.2f}), so look whether each cluster is one tissue or one shade, and try other "
    "clusters.features."
)


def warnings_of(k: int, *, associations: Sequence[Association], one_slide: Sequence[OneSlide]) -> list[str]:
    """What is wrong at ``k``, a sentence each, and what to do; empty where nothing is."""
    warnings = [
        _WARNINGS[entry.factor].format(
            excess=round(100 * entry.excess), least=round(100 * WARN_ABOVE[entry.factor]), p=entry.p
        )
        for entry in associations
        if entry.k == k and entry.warns
    ]
    warnings += [
        f"{round(100 * entry.share)} % of the {entry.patches:,} patches of cluster {entry.cluster} are of one slide, "
        f"{entry.slide}."
        for entry in one_slide
        if entry.k == k
    ]
    return [*warnings, ADVICE] if warnings else []


@dataclass(frozen=True)
class PatchStains:
    """Of each patch, (N,): mean density of haematoxylin and of eosin, and the sums of both over its tissue's pixels.

    ``colour_N6`` and ``stain_N4``: mean, then deviation, over the pixels of RGB (0..255), and of the two densities.
    """

    haematoxylin_N: np.ndarray
    eosin_N: np.ndarray
    tissue_haematoxylin_N: np.ndarray
    tissue_eosin_N: np.ndarray
    colour_N6: np.ndarray
    stain_N4: np.ndarray


@dataclass(frozen=True)
class SlideStain:
    """A slide's ``balance``: haematoxylin's share of the stain in its tissue, 0..1 where both are above 0."""

    balance: float


def patch_stains(images_NHW3: np.ndarray) -> PatchStains:
    """Colour and stains of patches, uint8 (N, H, W, 3)."""
    step = max(1, images_NHW3.shape[1] // PIXELS)
    rgb_NHW3 = images_NHW3[:, ::step, ::step].astype(np.float64)
    density_NHW3 = -np.log((rgb_NHW3 + 1) / 256)
    stains_NHW2 = (density_NHW3 @ hed_from_rgb)[..., :2].clip(min=0)
    tissue_NHW1 = density_NHW3.mean(axis=-1, keepdims=True) > TISSUE_DENSITY
    axes = (1, 2)
    tissue_N2 = (stains_NHW2 * tissue_NHW1).sum(axes)
    colour_N6, stain_N4 = (
        np.concatenate([values.mean(axes), values.std(axes)], axis=1) for values in (rgb_NHW3, stains_NHW2)
    )
    return PatchStains(stain_N4[:, 0], stain_N4[:, 1], tissue_N2[:, 0], tissue_N2[:, 1], colour_N6, stain_N4)


def colour_agreement(labels: Mapping[int, np.ndarray], *, stains: PatchStains, seed: int) -> list[ColourAgreement]:
    """Each k's clusters of the patches of ``stains``, (N,) by k, beside k-means on their colour and on their stain.

    A k is left out where there are fewer different patches than clusters.
    """
    features = {"colour": stains.colour_N6, "stain": stains.stain_N4}
    different = min(len(np.unique(x_ND, axis=0)) for x_ND in features.values())
    agreements = []
    for k, labels_N in labels.items():
        if k > different:
            continue
        best = dict.fromkeys(features, -1.0)
        for name, x_ND in features.items():
            for start in range(COLOUR_STARTS):
                model = KMeans(k, n_init=1, random_state=derive(seed, "confounding", name, k, start) % 2**32)
                ami = float(adjusted_mutual_info_score(model.fit_predict(x_ND), labels_N))
                best[name] = max(best[name], ami)
        closest = max(best, key=lambda name: best[name])
        warning = _COLOUR_WARNING.format(closest=closest, ami=best[closest], least=COLOUR_WARN_ABOVE)
        warns = best[closest] >= COLOUR_WARN_ABOVE
        agreements.append(ColourAgreement(k=k, n=len(labels_N), **best, warning=warning if warns else ""))
    return agreements


def slide_stains(stains: PatchStains, *, slides_N: np.ndarray) -> Mapping[str, SlideStain]:
    """Stain of each slide, from its patches' tissue; a slide without tissue counts as balanced."""
    names, slide_N = np.unique(slides_N.astype(str), return_inverse=True)
    sums = (np.bincount(slide_N, x) for x in (stains.tissue_haematoxylin_N, stains.tissue_eosin_N))
    return {
        str(slide): SlideStain(float(h / (h + e)) if h + e > 0 else 0.5)
        for slide, h, e in zip(names, *sums, strict=True)
    }
