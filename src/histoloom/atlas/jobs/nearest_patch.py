"""The training patch that a picture is nearest to, by the comparison that originality is judged by, on demand."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histoloom.evaluation.originality.greys import shrunk, small_greys
from histoloom.evaluation.originality.nearest import nearest
from histoloom.evaluation.originality.of_run import FILE, Rows
from histoloom.run.directory import Run, read_json
from histoloom.slides.patch_set import PatchSet

MOST = 20_000
"""training patches; one picture among so many takes seconds"""


@dataclass(frozen=True)
class Neighbour:
    """``score``: 1 for a copy, 0..1. ``threshold``: a score above it is taken for a copy; None: not calibrated."""

    patch_id: str
    score: float
    threshold: float | None


class TrainingPatches:
    """The training patches of one run as small greys, 4 KB each, read when they are first asked for."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._known: tuple[str, np.ndarray, np.ndarray] | None = None

    def nearest(self, image_HW3: np.ndarray) -> Neighbour | None:
        """The nearest one; None where there is none, or there are too many to look through while somebody waits."""
        run = Run.open(self._run)
        with self._lock:
            greys_MGG, ids_M = self._read(run)
            if not len(greys_MGG):
                return None
            found = nearest(shrunk(image_HW3[None]), greys_MGG)
        number = int(found.number_N[0])
        if number < 0:
            return None
        return Neighbour(str(ids_M[number]), float(found.score_N[0]), threshold_of(run))

    def _read(self, run: Run) -> tuple[np.ndarray, np.ndarray]:
        artifact = run.artifact("patches")
        made_from = "" if artifact is None else artifact.fingerprint
        if self._known is None or self._known[0] != made_from:
            patches = PatchSet.open(run.require("patches"))
            train = patches.rows("train")
            train = train if len(train) <= MOST else train[:0]
            ids_M = patches.columns("patch_id")["patch_id"].to_numpy(dtype=str)[train]
            self._known = (made_from, small_greys(Rows(patches, train)), ids_M)
        return self._known[1:]


def threshold_of(run: Run) -> float | None:
    """The score above which the run's evaluation takes a picture for a copy; None where it has set none."""
    file = run.folder("evaluation") / FILE
    found = read_json(file)["threshold"] if file.is_file() else None
    return None if found is None else float(found)
