"""A regular grid of patches over a slide, for maps: no randomness, no labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from histoloom.slides.entries import SlideError
from histoloom.slides.patches.sampling import patch_extent
from histoloom.slides.readers.base import Slide
from histoloom.slides.readers.scale import NO_MPP


@dataclass(frozen=True)
class Grid:
    """Patches in rows and columns: corners ``x``, ``y``, float (rows * columns,), row by row, and their side.

    All in level-0 px.
    The cell of row r and column c of a map covers 1/rows x 1/columns of the slide; its patch lies about its middle.
    """

    rows: int
    columns: int
    x: np.ndarray
    y: np.ndarray
    extent: float

    def __len__(self) -> int:
        return self.rows * self.columns


def grid(slide: Slide, *, size: int, mpp: float, limit: int) -> Grid:
    """Patches of ``size`` px at ``mpp`` um/px from edge to edge of a slide, side by side (overlapping by less than one
    patch in all), or further apart so that there are at most ``limit``.

    Raises ``SlideError`` where the slide has no mpp or is smaller than one patch.
    """
    if slide.mpp is None:
        raise SlideError(NO_MPP)
    extent = patch_extent(size, mpp=mpp, source_mpp=slide.mpp)
    width, height = slide.dimensions
    if extent > min(width, height) + 1e-6:
        raise SlideError(smaller_than_patch(slide.dimensions, source_mpp=slide.mpp, size=size, mpp=mpp))

    # As many as fit side by side, or fewer in the slide's proportions.
    across, down = width / extent, height / extent
    columns, rows = math.ceil(across - 1e-9), math.ceil(down - 1e-9)
    if columns * rows > limit:
        columns = min(limit, max(1, math.floor(across / math.sqrt(across * down / limit))))
        rows = max(1, min(rows, limit // columns))

    # In the middles of equal cells, moved inward where they would reach over the slide.
    x, y = (
        np.clip((np.arange(count) + 0.5) * (length / count) - extent / 2, 0.0, max(0.0, length - extent))
        for length, count in ((width, columns), (height, rows))
    )
    return Grid(rows, columns, np.tile(x, rows), np.repeat(y, columns), extent)


def smaller_than_patch(dimensions: tuple[int, int], *, source_mpp: float, size: int, mpp: float) -> str:
    """The reason why a slide of ``dimensions`` (level-0 px) has no patch."""
    width, height = (side * source_mpp for side in dimensions)
    return (
        f"slide is smaller than one patch: {width:.0f} x {height:.0f} um, needs {size * mpp:.0f} um; "
        "choose a smaller patches.size or patches.mpp"
    )


def batches(slide: Slide, *, cells: Grid, size: int, batch: int) -> Iterator[np.ndarray]:
    """The grid's patches, row by row, as uint8 (at most ``batch``, size, size, 3)."""
    for start in range(0, len(cells), batch):
        rows = range(start, min(start + batch, len(cells)))
        yield np.stack([slide.read(cells.x[i], cells.y[i], extent=cells.extent, size=size) for i in rows])
