"""Where each patch lies on its slide, and in which cluster: what a map of patches shows of a part of a slide.

Shape suffixes: N the patches of one slide.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoloom.clustering.clustering_set import Clustering
from histoloom.slides.patch_set import PatchSet

MOST = 20_000
"""Patches that are shown at once."""

_NONE = np.empty(0, np.int32)
_GOLDEN = (np.sqrt(5.0) - 1) / 2


@dataclass(frozen=True)
class Placed:
    """Patches in a part of a slide: corners and side in level-0 px, and their clusters.

    ``total`` patches lie there; where they are more than may be shown, these are an even choice of them.
    """

    x_N: np.ndarray
    y_N: np.ndarray
    label_N: np.ndarray
    extent: float
    total: int


@dataclass(frozen=True)
class _OnSlide:
    """``row_N`` are the rows of the clustering; ``turn_N`` says which to show first, spread evenly over the rows."""

    x_N: np.ndarray
    y_N: np.ndarray
    row_N: np.ndarray
    turn_N: np.ndarray
    extent: float


class PlacedPatches:
    """The patches of a run by slide; those without a cluster are left out. Threads may ask at once."""

    def __init__(self, patches: PatchSet, *, clustering: Clustering) -> None:
        self._clustering = clustering
        table = patches.columns("patch_id", "slide_id", "x", "y", "extent")
        row = pd.Index(clustering.table["patch_id"]).get_indexer(table["patch_id"])
        known = table.assign(row=row)[row >= 0]
        self._slides = {str(slide_id): _on_slide(group) for slide_id, group in known.groupby("slide_id", sort=False)}
        self._labels: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def within(self, slide_id: str, *, k: int, box: tuple[float, float, float, float], most: int = MOST) -> Placed:
        """The patches of a slide that touch ``box`` (left, top, right, bottom; level-0 px), with their cluster of k."""
        found = self._slides.get(slide_id)
        if found is None:
            return Placed(_NONE, _NONE, _NONE, extent=0.0, total=0)
        left, top, right, bottom = box
        inside = (found.x_N < right) & (found.y_N < bottom)
        inside &= (found.x_N + found.extent > left) & (found.y_N + found.extent > top)
        shown = np.flatnonzero(inside)
        total = len(shown)
        if total > most:
            shown = np.sort(shown[np.argpartition(found.turn_N[shown], most)[:most]])
        return Placed(
            found.x_N[shown], found.y_N[shown], self._labels_of(k)[found.row_N[shown]], found.extent, total=total
        )

    def sizes(self, slide_id: str, *, k: int) -> np.ndarray:
        """How many patches of a slide lie in each cluster of k: (k,)."""
        found = self._slides.get(slide_id)
        labels = _NONE if found is None else self._labels_of(k)[found.row_N]
        return np.bincount(labels, minlength=k)

    def _labels_of(self, k: int) -> np.ndarray:
        with self._lock:
            if k not in self._labels:
                self._labels[k] = self._clustering.table[f"k{k}"].to_numpy(np.int32)
            return self._labels[k]


def _on_slide(group: pd.DataFrame) -> _OnSlide:
    return _OnSlide(
        x_N=group["x"].to_numpy(np.int32),
        y_N=group["y"].to_numpy(np.int32),
        row_N=group["row"].to_numpy(np.int32),
        turn_N=np.modf((np.arange(len(group)) + 1) * _GOLDEN)[0],
        extent=float(group["extent"].iloc[0]),
    )
