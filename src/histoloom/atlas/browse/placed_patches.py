"""Where each patch lies on its slide, and in which cluster: what a map of patches shows of a part of a slide.

Shape suffixes: N all patches of the run, M those that are shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from histoloom.atlas.browse.patch_table import PatchTable

MOST = 20_000
"""Patches that are shown at once."""

_GOLDEN = (np.sqrt(5.0) - 1) / 2
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Placed:
    """Patches in a part of a slide: their rows of the table.

    ``total`` patches lie there; where they are more than may be shown, these are an even choice of them.
    """

    rows_M: np.ndarray
    total: int


class PlacedPatches:
    """The patches of a run, found by their place: their rows by slide, beside the columns of the table."""

    def __init__(self, table: PatchTable) -> None:
        self._table = table
        self._number = {str(slide_id): code for code, slide_id in enumerate(table.slides["slide_id"])}
        self._rows_N = np.argsort(table.slide_N, kind="stable").astype(np.int32)
        self._starts = np.searchsorted(table.slide_N[self._rows_N], np.arange(len(self._number) + 1))
        # Which of too many to show first: the same in every box, so that none flickers when the box moves.
        self._turn_N = np.modf((np.arange(len(table)) + 1) * _GOLDEN)[0].astype(np.float32)

    def on_slide(self, slide_id: str) -> np.ndarray:
        """The rows of a slide's patches, rising; none where it has none."""
        number = self._number.get(slide_id)
        return _NONE if number is None else self._rows_N[self._starts[number] : self._starts[number + 1]]

    def within(
        self, slide_id: str, *, label_N: np.ndarray, box: tuple[float, float, float, float], most: int = MOST
    ) -> Placed:
        """A slide's patches that touch ``box`` (left, top, right, bottom; level-0 px).

        ``label_N`` are the clusters, -1 for patches that have none, which are left out.
        """
        rows, table = self.on_slide(slide_id), self._table
        left, top, right, bottom = box
        x, y, extent = table.x_N[rows], table.y_N[rows], table.extent_N[rows]
        inside = (x < right) & (y < bottom) & (x + extent > left) & (y + extent > top) & (label_N[rows] >= 0)
        found = rows[inside]
        if len(found) <= most:
            return Placed(found, total=len(found))
        chosen = np.argpartition(self._turn_N[found], most)[:most]
        return Placed(found[np.sort(chosen)], total=len(found))

    def sizes(self, slide_id: str, *, label_N: np.ndarray, k: int) -> np.ndarray:
        """How many patches of a slide lie in each cluster: int64 (k,)."""
        labels = label_N[self.on_slide(slide_id)]
        return np.bincount(labels[labels >= 0], minlength=k)
