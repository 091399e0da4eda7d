"""Agreement of clusters with the true tissue classes of patches, where slides have true maps: ``truth.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from histoloom.evaluation.results import Agreement, Truth
from histoloom.run.stage import StageContext
from histoloom.slides.entries import SlideError
from histoloom.slides.inventory.pseudonyms import real_file
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.procedural.slides import TissueMap, label_patches

UNKNOWN = -1


def write_truth(context: StageContext, *, patches: PatchSet, labels: Mapping[int, np.ndarray]) -> None:
    """Write ``truth.json`` where a patch has a true class; ``labels`` are the patches' clusters of each k."""
    truth_N = true_classes(
        patches.columns("slide_id", "x", "y", "extent"), slides=patches.slides, paths=context.config.slides.paths
    )
    measured = [agreement(labels_N, truth_N=truth_N, k=k) for k, labels_N in labels.items()]
    agreements = tuple(one for one in measured if one is not None)
    if not agreements:
        return
    Truth(agreements=agreements).save(context.out)
    values = ", ".join(f"k = {one.k}: {one.nmi:.2f}" for one in agreements)
    context.say(f"NMI of clusters and true tissue over {agreements[0].n:,} patches: {values}")


def agreement(labels_N: np.ndarray, *, truth_N: np.ndarray, k: int) -> Agreement | None:
    """NMI and ARI over the patches of known class; None where there are none."""
    known = truth_N != UNKNOWN
    labels, truth = labels_N[known], truth_N[known]
    if len(truth) == 0:
        return None
    return Agreement(
        k=k,
        method="infomax",
        nmi=float(normalized_mutual_info_score(truth, labels)),
        ari=float(adjusted_rand_score(truth, labels)),
        n=len(truth),
        classes=len(np.unique(truth)),
    )


def true_classes(patches: pd.DataFrame, *, slides: pd.DataFrame, paths: Sequence[str] = ()) -> np.ndarray:
    """The true class of each patch, int (N,), -1 where its slide has no true map.

    ``patches`` has columns slide_id, x, y, extent; ``slides`` slide_id, file, width, height; ``paths``: where slides
    that have moved are looked for. Classes are joined by their names, since each slide numbers its own.
    """
    class_numbers: dict[str, int] = {}
    truth_N = np.full(len(patches), UNKNOWN, np.int64)
    rows_by_slide = patches.groupby("slide_id", sort=False).indices
    for slide_id, file, width, height in slides[["slide_id", "file", "width", "height"]].to_numpy():
        rows = rows_by_slide.get(slide_id)
        true_map = None
        with suppress(SlideError):  # the slide of a private run whose names are not known here
            true_map = TissueMap.load(real_file(str(file), paths=paths)) if rows is not None else None
        if rows is None or true_map is None:
            continue
        numbers = np.array([class_numbers.setdefault(name, len(class_numbers)) for name in true_map.classes])
        of_slide = patches.iloc[rows]
        labels = label_patches(
            true_map.class_hw,
            slide_size=(int(width), int(height)),
            x=of_slide["x"].to_numpy(),
            y=of_slide["y"].to_numpy(),
            extent=of_slide["extent"].to_numpy(),
        )
        truth_N[rows] = numbers[labels]
    return truth_N
