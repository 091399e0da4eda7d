"""All patches of a run, found by id or by their place on a slide: columns instead of objects.

100,000 patches take 6 MB here. Shape suffixes: N all patches of the run, M those of a selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from histoloom.slides.entries import OK
from histoloom.slides.patch_set import PatchSet

MAX_IN_BOX = 20_000
"""Patches that are shown at once."""

_GOLDEN = (np.sqrt(5.0) - 1) / 2


@dataclass(frozen=True)
class PatchesInBox:
    """The rows of the patches in a part of a slide.

    ``total`` patches lie there; where they are more than may be shown, ``rows_M`` is an even selection of them.
    """

    rows_M: np.ndarray
    total: int


class PatchTable:
    """The patches in the order of the stage's index; ``slides`` are the usable ones, in the order of their numbers.

    ``slide_N`` int32 is each patch's row in ``slides``; ``x_N``, ``y_N`` float32 its corner and ``extent_N`` its side
    in level-0 px; ``held_out_N`` bool. Threads may share it.
    """

    def __init__(self, folder: Path) -> None:
        self.patches = PatchSet.open(folder)
        with pq.ParquetFile(folder / "index.parquet") as file:
            index = file.read(["patch_id", "slide_id", "x", "y", "extent", "split"])
        self._ids: pa.ChunkedArray = index.column("patch_id").cast(pa.string()).combine_chunks()

        slides, with_patches = self.patches.slides, set(index.column("slide_id").unique().to_pylist())
        usable = slides[(slides["status"] == OK) | slides["slide_id"].isin(with_patches)]
        self.slides = usable.reset_index(drop=True)
        self._slide_numbers = {str(slide_id): number for number, slide_id in enumerate(self.slides["slide_id"])}

        slide_ids = index.column("slide_id").cast(pa.string()).combine_chunks().dictionary_encode()
        numbers = np.array([self._slide_numbers[slide_id] for slide_id in slide_ids.dictionary.to_pylist()], np.int32)
        self.slide_N = numbers[slide_ids.indices.to_numpy(zero_copy_only=False)]
        self.x_N, self.y_N, self.extent_N = (
            index.column(name).to_numpy().astype(np.float32) for name in ("x", "y", "extent")
        )
        self.held_out_N: np.ndarray = index.column("split").cast(pa.string()).to_numpy() == "holdout"

    def __len__(self) -> int:
        return len(self.slide_N)

    @property
    def size(self) -> int:
        """A patch's side in px."""
        return self.patches.size

    def regions(self) -> np.ndarray | None:
        """The region that each patch was drawn from, (N,) of texts; None where patches were drawn anywhere."""
        return None if not self.patches.has_regions else self.patches.columns("region")["region"].to_numpy()

    def ids(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """The ids of rows."""
        return [self._ids[int(row)].as_py() for row in rows]

    def row(self, patch_id: str) -> int | None:
        """The row of a patch, None where there is none: 2 ms for 100,000 patches."""
        text = patch_id.encode("utf-8", "replace").decode()  # a lone surrogate is no text
        row = pa.compute.index(self._ids, pa.scalar(text)).as_py()
        return None if row < 0 else int(row)

    def rows_of(self, ids: pa.ChunkedArray | pa.Array) -> np.ndarray:
        """The rows of many ids at once, int64, -1 where there is none."""
        plain = ids.cast(pa.string())
        if isinstance(plain, pa.ChunkedArray):
            plain = plain.combine_chunks()
        if plain.equals(self._ids):
            return np.arange(len(self), dtype=np.int64)
        return np.asarray(pa.compute.index_in(plain, value_set=self._ids).fill_null(-1).to_numpy(), dtype=np.int64)

    def slide_number(self, slide_id: str) -> int | None:
        """A slide's row in ``slides``, None where there is none."""
        return self._slide_numbers.get(slide_id)

    def boxes(self, rows: np.ndarray) -> np.ndarray:
        """The sides of patches (left, top, right, bottom) in level-0 px, float32 (M, 4)."""
        x, y, extent = self.x_N[rows], self.y_N[rows], self.extent_N[rows]
        return np.stack([x, y, x + extent, y + extent], axis=1)

    def image(self, row: int) -> np.ndarray:
        """A patch, uint8 (size, size, 3)."""
        return np.asarray(self.patches.images([row])[0])

    def on_slide(self, slide_id: str) -> np.ndarray:
        """The rows of a slide's patches, rising; none where it has none."""
        number, (rows_N, starts) = self.slide_number(slide_id), self._rows_by_slide
        return rows_N[:0] if number is None else rows_N[starts[number] : starts[number + 1]]

    def in_box(
        self,
        slide_id: str,
        *,
        label_N: np.ndarray,
        box: tuple[float, float, float, float],
        max_patches: int = MAX_IN_BOX,
    ) -> PatchesInBox:
        """A slide's patches that touch ``box`` (left, top, right, bottom; level-0 px).

        ``label_N`` are the clusters, -1 for patches that have none, which are left out.
        """
        rows = self.on_slide(slide_id)
        left, top, right, bottom = box
        x, y, extent = self.x_N[rows], self.y_N[rows], self.extent_N[rows]
        inside = (x < right) & (y < bottom) & (x + extent > left) & (y + extent > top) & (label_N[rows] >= 0)
        rows = rows[inside]
        if len(rows) <= max_patches:
            return PatchesInBox(rows, total=len(rows))
        selected = np.argpartition(self._priority_N[rows], max_patches)[:max_patches]
        return PatchesInBox(rows[np.sort(selected)], total=len(rows))

    def cluster_sizes(self, slide_id: str, *, label_N: np.ndarray, k: int) -> np.ndarray:
        """How many patches of a slide lie in each cluster: int64 (k,)."""
        labels = label_N[self.on_slide(slide_id)]
        return np.bincount(labels[labels >= 0], minlength=k)

    @cached_property
    def _rows_by_slide(self) -> tuple[np.ndarray, np.ndarray]:
        """All rows, sorted by slide, and where each slide starts among them."""
        rows_N = np.argsort(self.slide_N, kind="stable").astype(np.int32)
        return rows_N, np.searchsorted(self.slide_N[rows_N], np.arange(len(self.slides) + 1))

    @cached_property
    def _priority_N(self) -> np.ndarray:
        """Which of too many patches to show first: the same in every box, so that none flickers when the box moves.

        Multiples of the golden ratio modulo 1 are spread evenly over 0..1, in every range of rows.
        """
        return np.modf((np.arange(len(self)) + 1) * _GOLDEN)[0].astype(np.float32)
