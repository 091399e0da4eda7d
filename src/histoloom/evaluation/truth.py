"""How well clusters agree with the true tissue of patches, where a slide carries its true map."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from histoloom.slides.inventory.pseudonyms import real_file
from histoloom.slides.procedural.procedural import label_patches, truth_of

UNKNOWN = -1


@dataclass(frozen=True)
class Agreement:
    """Agreement of a clustering with true classes, which says nothing of which cluster is which class."""

    nmi: float
    """normalised mutual information, arithmetic mean (Vinh et al. 2010): 0 independent, 1 the same partition"""
    ari: float
    """adjusted Rand index (Hubert & Arabie 1985): 0 by chance, 1 the same partition"""
    n: int
    """patches"""
    classes: int
    """true classes among them"""


def agreement(labels_N: np.ndarray, *, truth_N: np.ndarray) -> Agreement | None:
    """NMI and ARI over the patches of known class; None where there are none."""
    known = truth_N != UNKNOWN
    labels, truth = labels_N[known], truth_N[known]
    if len(truth) == 0:
        return None
    return Agreement(
        nmi=float(normalized_mutual_info_score(truth, labels)),
        ari=float(adjusted_rand_score(truth, labels)),
        n=len(truth),
        classes=len(np.unique(truth)),
    )


def true_classes(patches: pd.DataFrame, *, slides: pd.DataFrame) -> np.ndarray:
    """The true class of each patch, int (N,), -1 where its slide has no true map.

    ``patches`` has columns slide_id, x, y, extent; ``slides`` slide_id, file, width, height. Classes are joined by
    their names, since each slide numbers its own.
    """
    classes: dict[str, int] = {}
    result = np.full(len(patches), UNKNOWN, np.int64)
    for slide_id, file, width, height in slides[["slide_id", "file", "width", "height"]].to_numpy():
        rows = np.flatnonzero((patches["slide_id"] == slide_id).to_numpy())
        found = truth_of(real_file(str(file))) if len(rows) else None
        if found is None:
            continue
        truth_hw, names = found
        codes = np.array([classes.setdefault(name, len(classes)) for name in names])
        some = patches.iloc[rows]
        labels = label_patches(
            truth_hw,
            slide_size=(int(width), int(height)),
            x=some["x"].to_numpy(),
            y=some["y"].to_numpy(),
            extent=some["extent"].to_numpy(),
        )
        result[rows] = codes[labels]
    return result


def truth_entries(labels: pd.DataFrame, *, truth_N: np.ndarray) -> list[dict[str, Any]]:
    """``truth.json``: an entry for each column ``k{k}`` of ``labels``, whose rows are those of ``truth_N``."""
    entries = []
    for column in labels.columns:
        found = agreement(labels[column].to_numpy(), truth_N=truth_N)
        if found is not None:
            entries.append({"k": int(str(column).removeprefix("k")), "method": "infomax"} | asdict(found))
    return entries
