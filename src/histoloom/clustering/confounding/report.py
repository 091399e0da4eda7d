"""``confounding.json``: what the clusters of every k share with slide, patient, stain and colour.

Shapes: N patches, M patches whose stain is measured.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from histoloom.clustering.confounding.association import (
    COLOUR_WARN_ABOVE,
    HIGH,
    ONE_SLIDE,
    PERMUTATIONS,
    SIGNIFICANT,
    WARN_ABOVE,
    Factor,
    PatchStains,
    association,
    by_quantile,
    colour_agreement,
    one_slide_clusters,
    patch_stains,
    slide_stain_groups,
    slide_stains,
    warnings_of,
)
from histoloom.clustering.results import Association, Confounding, WarningRule
from histoloom.progress import meter
from histoloom.seeding import numpy_generator
from histoloom.slides.patch_set import PatchSet

MOST_PATCHES, MOST_STAINS = 20_000, 2_000
"""At most so many patches, drawn at random, are examined; stain and colour of so many of these are measured."""

STAIN_BINS, CHUNK = 8, 64

Labels = Mapping[int, np.ndarray]


def examine(labels: pd.DataFrame, *, patches: PatchSet, seed: int) -> Confounding:
    """All of ``confounding.json``; ``labels`` has ``patch_id`` and a column ``k{k}`` for each k, of any split."""
    drawn = numpy_generator(seed, "clusters", "confounding").permutation(len(labels))[:MOST_PATCHES]
    table = labels.iloc[np.sort(drawn)].reset_index(drop=True)
    rows_N = patches.rows_of(table["patch_id"])
    table = pd.concat([table, patches.columns("slide", "patient", rows=rows_N)], axis=1)
    by_k = {int(name[1:]): table[name].to_numpy(np.int64) for name in labels.columns if name != "patch_id"}
    some = np.sort(numpy_generator(seed, "clusters", "confounding", "stain").permutation(len(table))[:MOST_STAINS])
    rows_M, parts = rows_N[some], []
    with meter("measuring stain", total=len(rows_M)) as progress:
        for start in range(0, len(rows_M), CHUNK):
            chunk = rows_M[start : start + CHUNK]
            parts.append(patch_stains(patches.images(chunk)))
            progress.advance(len(chunk))
    stains = PatchStains(*(np.concatenate(values) for values in zip(*(vars(p).values() for p in parts), strict=True)))
    associations = _of_slides(table, labels=by_k, stains=stains, some=some, seed=seed)
    associations += _of_patches(table, labels=by_k, stains=stains, some=some, seed=seed)
    one_slide = [
        o for k, labels_N in by_k.items() for o in one_slide_clusters(labels_N, k=k, slides_N=table["slide"].to_numpy())
    ]
    warnings = {k: tuple(warnings_of(k, associations=associations, one_slide=one_slide)) for k in by_k}
    return Confounding(
        patches=len(table),
        stain_patches=len(some),
        permutations=PERMUTATIONS,
        rule=WarningRule(
            p=SIGNIFICANT, excess=WARN_ABOVE, one_slide=ONE_SLIDE, null_high=HIGH, colour=COLOUR_WARN_ABOVE
        ),
        associations=tuple(sorted(associations, key=lambda entry: entry.k)),
        one_slide=tuple(one_slide),
        colour=tuple(colour_agreement({k: labels_N[some] for k, labels_N in by_k.items()}, stains=stains, seed=seed)),
        warnings={k: sentences for k, sentences in warnings.items() if sentences},
    )


def _of_slides(
    table: pd.DataFrame, *, labels: Labels, stains: PatchStains, some: np.ndarray, seed: int
) -> list[Association]:
    """Slide against a null of permuted patches; patient and the slide's stain against one of permuted slides."""
    slides_N, patients_N = _codes(table["slide"]), _codes(table["patient"])
    groups = slide_stain_groups(slide_stains(stains, slides_N=table["slide"].to_numpy()[some]))
    known_N = table["slide"].astype(str).isin(list(groups)).to_numpy()
    stained_N = table["slide"].astype(str).map(groups).fillna(0).to_numpy(np.int64)
    factors = [
        (Factor("slide", slides_N, "patches"), np.ones(len(table), bool)),
        (Factor("patient", patients_N, "slides"), np.ones(len(table), bool)),
        (Factor("slide_stain", stained_N, "slides"), known_N),
    ]
    associations: list[Association] = []
    for factor, used_N in factors:
        of_used = Factor(factor.name, factor.codes_N[used_N], factor.null)
        if _tells(of_used, slides_N=slides_N[used_N]):
            used = {k: labels_N[used_N] for k, labels_N in labels.items()}
            rng = numpy_generator(seed, "clusters", "confounding", factor.name)
            associations += association(used, factor=of_used, slides_N=slides_N[used_N], rng=rng)
    return associations


def _of_patches(
    table: pd.DataFrame, *, labels: Labels, stains: PatchStains, some: np.ndarray, seed: int
) -> list[Association]:
    """The patches' own stain, which is tissue as well as staining."""
    used = {k: labels_N[some] for k, labels_N in labels.items()}
    slides_M = _codes(table["slide"])[some]
    associations: list[Association] = []
    for name, values_M in (("haematoxylin", stains.haematoxylin_N), ("eosin", stains.eosin_N)):
        factor = Factor(name, by_quantile(values_M, groups=STAIN_BINS), "patches")
        if _tells(factor, slides_N=slides_M):
            rng = numpy_generator(seed, "clusters", "confounding", name)
            associations += association(used, factor=factor, slides_N=slides_M, rng=rng)
    return associations


def _tells(factor: Factor, *, slides_N: np.ndarray) -> bool:
    """Whether the factor has levels to tell apart; one that is the slide itself has no null of permuted slides."""
    levels = len(np.unique(factor.codes_N))
    return levels > 1 and not (factor.null == "slides" and levels == len(np.unique(slides_N)))


def _codes(column: pd.Series) -> np.ndarray:
    return pd.factorize(column.astype(str), sort=True)[0].astype(np.int64)
