"""The training patch nearest to a picture, by the comparison that the originality check uses, on demand."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histoloom.evaluation.images import ImageRows
from histoloom.evaluation.originality.greys import read_greys, to_greys
from histoloom.evaluation.originality.nearest import Gallery, nearest
from histoloom.evaluation.results import Originality
from histoloom.run.directory import Run
from histoloom.slides.patch_set import PatchSet

MAX_PATCHES = 20_000
"""Training patches; one picture among so many takes seconds."""


@dataclass(frozen=True)
class NearestPatch:
    """The nearest training patch. ``score`` is 1 for a copy, 0..1; a score above ``threshold`` counts as a copy.

    ``threshold`` is None where the run's evaluation set none.
    """

    patch_id: str
    score: float
    threshold: float | None


class TrainingPatches:
    """The training patches of one run: small grey pictures of 4 KB each, read at the first search, and their blocks."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._cached: tuple[str, Gallery, np.ndarray] | None = None

    def nearest(self, image_HW3: np.ndarray) -> NearestPatch | None:
        """The nearest one; None where there is none, or too many to search while a user waits."""
        run = Run.open(self._run)
        with self._lock:
            artifact = run.artifact("patches")
            made_from = "" if artifact is None else artifact.fingerprint
            if self._cached is None or self._cached[0] != made_from:
                patches = PatchSet.open(run.require("patches"))
                train = patches.rows("train")
                train = train if len(train) <= MAX_PATCHES else train[:0]
                ids_M = patches.columns("patch_id")["patch_id"].to_numpy(dtype=str)[train]
                gallery = Gallery(read_greys(ImageRows(patches.images, train)))
                self._cached = (made_from, gallery, ids_M)
            _, gallery, ids_M = self._cached
            if not len(gallery):
                return None
            matches = nearest(to_greys(image_HW3[None]), gallery)
        number = int(matches.number_N[0])
        if number < 0:
            return None
        originality = Originality.load(run.folder("evaluation"))
        threshold = None if originality is None else originality.threshold
        return NearestPatch(str(ids_M[number]), float(matches.score_N[0]), threshold)
