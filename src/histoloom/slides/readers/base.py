"""The interface of all slide readers: a box of level-0 pixels, read at any size without aliasing.

All coordinates are level-0 pixels, origin at the upper left; images are RGB uint8 0..255 in (height, width, 3). What
lies outside a slide, or was never scanned, is white. Only the slide itself is read, never its label or macro image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import pairwise, product
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from PIL import Image

from histoloom.slides.entries import SlideError
from histoloom.slides.readers.levels import Size, factors
from histoloom.slides.readers.resample import SUPPORT, Box, resample
from histoloom.slides.readers.scale import Scale

_BLOCK_SIDE = 4096  # px of a level that are read and filtered at once
# To tell whether two levels show the same: fields along each side, px of one on the coarser level and on the finer one
# at most, the correlation above which they are alike, and the deviation (0..255) below which there is nothing to see.
_FIELDS, _FIELD_SIDE, _FIELD_READ, _ALIKE, _EVEN = 4, 32, 256, 0.7, 4.0
_LABEL_SIDE = 1024  # px; labels are no larger
_EXACT_PIXELS = 2**22  # beyond this, float32 copies take too much memory; Pillow filters them instead


Source = TypeVar("Source")


class Slide(ABC):
    """An open slide.

    ``dimensions`` are (width, height) at level 0; ``scale`` is that of level 0, None where unknown; ``levels`` are the
    (width, height) of each pyramid level. ``origin`` is the level-0 (x, y) of the scanned part, where viewers that crop
    to it, as QuPath does, count from. ``whole_pixels``: a region starts with the whole level pixel at or after its
    level-0 corner, not between two. ``concurrent``: several threads may read at once. ``decodes_whole``: the image can
    only be decoded in one piece. Reading raises ``SlideError``.
    """

    origin: tuple[int, int] = (0, 0)
    whole_pixels = False
    concurrent = False
    decodes_whole = False

    def __init__(self, levels: list[tuple[int, int]], scale: Scale | None) -> None:
        self.levels = levels
        self.scale = scale

    @property
    def mpp(self) -> float | None:
        """um/px at level 0, None where unknown."""
        return None if self.scale is None else self.scale.mpp

    @property
    def mpp_source(self) -> str:
        """Where ``mpp`` comes from."""
        return "" if self.scale is None else self.scale.source

    @property
    def dimensions(self) -> tuple[int, int]:
        """(width, height) at level 0, px."""
        return self.levels[0]

    @abstractmethod
    def pixels(self, x: float, y: float, *, level: int, width: int, height: int) -> np.ndarray:
        """Pixels of a level, ``width`` x ``height`` of its own, from level-0 (x, y): uint8 (height, width, 3).

        White outside the slide.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the file and drop the decoded pixels."""

    def read(self, x: float, y: float, *, extent: float, size: int) -> np.ndarray:
        """The level-0 square of side ``extent`` px at (x, y), resampled to uint8 (size, size, 3)."""
        return self.region((x, y, x + extent, y + extent), shape=(size, size))

    def thumbnail(self, max_side: int) -> np.ndarray:
        """The whole slide, uint8 (h, w, 3), its longer side at most ``max_side`` px."""
        width, height = self.dimensions
        factor = max(1.0, max(width, height) / max_side)
        shape = (max(1, round(width / factor)), max(1, round(height / factor)))
        return self.region((0.0, 0.0, float(width), float(height)), shape=shape)

    def stored(self, left: int, top: int, *, level: int, width: int, height: int) -> np.ndarray:
        """Pixels of a level as they are stored, from its own whole pixel (left, top): uint8 (height, width, 3)."""
        downsample = self.downsample(level)
        return self.pixels(left * downsample, top * downsample, level=level, width=width, height=height)

    def region(self, box: Box, *, shape: tuple[int, int]) -> np.ndarray:
        """A level-0 box (left, top, right, bottom) at ``shape`` (width, height): uint8 (h, w, 3).

        Block by block, in bounded memory.
        """
        sides = (box[2] - box[0], box[3] - box[1])
        downsample = self.downsample(self.level_for(min(sides[0] / shape[0], sides[1] / shape[1])))
        counts = [min(n, math.ceil(side / downsample / _BLOCK_SIDE)) for n, side in zip(shape, sides, strict=True)]
        if counts == [1, 1]:
            return self._resampled(box, shape=shape)
        columns, rows = (
            np.linspace(0, n, count + 1).round().astype(int) for n, count in zip(shape, counts, strict=True)
        )
        result = np.empty((shape[1], shape[0], 3), np.uint8)
        for (top, bottom), (left, right) in product(pairwise(rows), pairwise(columns)):
            across = box[0] + sides[0] / shape[0] * np.array([left, right])
            down = box[1] + sides[1] / shape[1] * np.array([top, bottom])
            part = (float(across[0]), float(down[0]), float(across[1]), float(down[1]))
            result[top:bottom, left:right] = self._resampled(part, shape=(int(right - left), int(bottom - top)))
        return result

    def _add_level(self, size: Size, source: Source, *, sources: list[Source], declared: bool) -> None:
        """Add a level of ``size`` that is read from ``source``, where it is a reduction of the whole slide.

        A reduction by a power of two is known by its size. Any other must show what the level before it shows, and so
        must every small image that the file does not declare as a level: it may be a label of the slide's proportions.
        """
        limits = factors(self.levels[-1], size)
        if limits is None:
            return
        self.levels.append(size)
        sources.append(source)
        halvings = math.floor(math.log2(limits[1]) - 1e-9)
        halved = halvings > 0 and 2.0**halvings > limits[0]
        known = halved and (declared or max(size) > _LABEL_SIDE)
        if not known and not self._shows_the_level_before(len(self.levels) - 1, unreadable=halved):
            self.levels.pop()
            sources.pop()

    def _shows_the_level_before(self, level: int, *, unreadable: bool) -> bool:
        """Whether fields all over a level look like the level before there; ``unreadable`` if a tile is damaged."""
        (width, height), factor = self.levels[level], self.downsample(level) / self.downsample(level - 1)
        side = max(1, min(_FIELD_SIDE, width, height, int(_FIELD_READ / factor)))
        fields = []
        try:
            for left, top in product(np.linspace(0, width - side, _FIELDS), np.linspace(0, height - side, _FIELDS)):
                x, y = int(left), int(top)
                coarse = self.stored(x, y, level=level, width=side, height=side)
                read = math.ceil(side * factor)
                fine = self.stored(round(x * factor), round(y * factor), level=level - 1, width=read, height=read)
                fields.append((coarse, np.asarray(Image.fromarray(fine).resize((side, side), Image.Resampling.BOX))))
        except SlideError:
            return unreadable
        coarse, fine = (
            np.concatenate([field.mean(axis=2).ravel() for field in part]) for part in zip(*fields, strict=True)
        )
        if max(coarse.std(), fine.std()) < _EVEN:
            return bool(np.abs(coarse - fine).mean() < _EVEN)
        return min(coarse.std(), fine.std()) > 0 and bool(np.corrcoef(coarse, fine)[0, 1] > _ALIKE)

    def level_for(self, factor: float) -> int:
        """The coarsest level that is still as fine as wanted, within 1 %."""
        return max(i for i in range(len(self.levels)) if i == 0 or self.downsample(i) <= 1.01 * factor)

    def downsample(self, level: int) -> float:
        """Level-0 px per pixel of a level, by the two sizes; the mean of across and down."""
        (width, height), (level_width, level_height) = self.levels[0], self.levels[level]
        return (width / level_width + height / level_height) / 2

    def _resampled(self, box: Box, *, shape: tuple[int, int]) -> np.ndarray:
        """A level-0 box at ``shape`` (width, height), by a Lanczos filter as wide as the reduction."""
        factor = min((box[2] - box[0]) / shape[0], (box[3] - box[1]) / shape[1])
        level = self.level_for(factor)
        downsample = self.downsample(level)
        margin = SUPPORT * max(1.0, factor / downsample) + 2

        # Along each axis: the level-0 start, the count of level pixels to read, and where the box lies among them.
        spans = []
        for axis, count, full in zip((0, 1), self.levels[level], self.dimensions, strict=True):
            start, size, low, high = _span(
                box[axis], box[axis + 2], downsample=downsample, margin=margin, count=count, full=full
            )
            if not self.whole_pixels:
                # The reader starts on the whole level-0 pixel at or before ``start``: the box lies further in.
                moved = (start - math.floor(start)) / downsample
                start, low, high = math.floor(start), low + moved, min(float(size), high + moved)
            spans.append((start, size, low, high))
        (x, width, left, right), (y, height, top, bottom) = spans
        pixels = self.pixels(x, y, level=level, width=width, height=height)

        if width * height <= _EXACT_PIXELS:
            return resample(pixels, box=(left, top, right, bottom), shape=shape)
        resized = Image.fromarray(pixels).resize(
            shape, Image.Resampling.LANCZOS, box=(left, top, right, bottom), reducing_gap=3.0
        )
        return np.asarray(resized)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _span(
    low: float, high: float, *, downsample: float, margin: float, count: int, full: int
) -> tuple[float, int, float, float]:
    """Along one axis: level-0 start and level pixels to read, and where low and high then lie among them.

    The margin gives the filter its neighbours; it stops at the slide's edge, so that no white leaks in there.
    """
    first_wanted, last_wanted = low / downsample, high / downsample
    if high <= full:
        last_wanted = min(last_wanted, count)
    first = math.floor(first_wanted) if low < 0 else max(0, math.floor(first_wanted - margin))
    last = math.ceil(last_wanted) if high > full else min(count, math.ceil(last_wanted + margin))
    pixels = last - first
    return first * downsample, pixels, max(0.0, first_wanted - first), min(float(pixels), last_wanted - first)
