"""A slide as tiles at every power of two, for a viewer: which tiles there are, and their pixels.

Level n shows level 0 at 1 / 2 ** n: its pixel i stands for the level-0 pixels i * 2 ** n up to (i + 1) * 2 ** n. Level
0 is the slide itself, the last level fits into one tile. Tiles are squares of ``TILE`` px; those at the right and lower
edge are cut. Tiles laid side by side are what the reader gives for the whole level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from histoloom.slides.readers.open import Slide

TILE = 256
"""px; the side of a tile."""

MOST_PIXELS = 2**24
"""Pixels of the file that one tile may need; more would keep a viewer waiting for seconds."""

_ROUNDING = 1.0  # px of a level by which programs that write pyramids differ in rounding its size


class NoTile(LookupError):
    """There is no such tile; the message is one line."""


@dataclass(frozen=True)
class Tile:
    """A tile in px of its level: where it begins, and its size (``TILE``, or less at the edge)."""

    level: int
    left: int
    top: int
    width: int
    height: int

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The level-0 px (left, top, right, bottom) that it stands for; at the edge it may reach over the slide."""
        scale = float(2**self.level)
        return (
            self.left * scale,
            self.top * scale,
            (self.left + self.width) * scale,
            (self.top + self.height) * scale,
        )


@dataclass(frozen=True)
class Zoom:
    """The levels and tiles of a slide of ``width`` x ``height`` level-0 px."""

    width: int
    height: int

    @property
    def levels(self) -> int:
        """How many levels there are."""
        return 1 + max(0, math.ceil(math.log2(max(self.width, self.height) / TILE)))

    def size(self, level: int) -> tuple[int, int]:
        """(width, height) of a level, px."""
        return -(-self.width // 2**level), -(-self.height // 2**level)

    def grid(self, level: int) -> tuple[int, int]:
        """(columns, rows) of a level's tiles."""
        width, height = self.size(level)
        return -(-width // TILE), -(-height // TILE)

    def tile(self, level: int, *, column: int, row: int) -> Tile:
        """A tile by its place; raises ``NoTile`` where there is none."""
        if not 0 <= level < self.levels:
            raise NoTile(f"there is no such level; this slide has levels 0 to {self.levels - 1}")
        columns, rows = self.grid(level)
        if not (0 <= column < columns and 0 <= row < rows):
            raise NoTile(f"there is no such tile; level {level} has {columns} columns and {rows} rows")
        width, height = self.size(level)
        left, top = column * TILE, row * TILE
        return Tile(level, left, top, min(TILE, width - left), min(TILE, height - top))


def tile_pixels(slide: Slide, tile: Tile) -> np.ndarray:
    """A tile's pixels, uint8 (height, width, 3); white where it reaches over the slide. Raises ``SlideError``.

    Where the file stores this very level they are the file's own, unfiltered.
    """
    stored = _stored_level(slide, tile.level)
    if stored is not None:
        return slide.stored(tile.left, tile.top, level=stored, width=tile.width, height=tile.height)
    return slide.region(tile.box, shape=(tile.width, tile.height))


def pixels_needed(slide: Slide, tile: Tile) -> float:
    """About how many pixels of the file a tile is made from."""
    fine = slide.downsample(slide.level_for(2.0**tile.level))
    return tile.width * tile.height * (2.0**tile.level / fine) ** 2


def tile_of_picture(picture: np.ndarray, tile: Tile, *, dimensions: tuple[int, int]) -> np.ndarray:
    """A tile from a picture of the whole slide, whose size is ``dimensions``: uint8 (height, width, 3)."""
    scales = picture.shape[1] / dimensions[0], picture.shape[0] / dimensions[1]
    left, top, right, bottom = tile.box
    box = (
        left * scales[0],
        top * scales[1],
        min(right * scales[0], picture.shape[1]),
        min(bottom * scales[1], picture.shape[0]),
    )
    return np.asarray(Image.fromarray(picture).resize((tile.width, tile.height), Image.Resampling.LANCZOS, box=box))


def _stored_level(slide: Slide, level: int) -> int | None:
    """The file's level that is ``level``, where its pixels can be had as they are; None where they are between two."""
    wanted = 2**level
    for number, size in enumerate(slide.levels):
        off = max(abs(full / wanted - side) for full, side in zip(slide.dimensions, size, strict=True))
        whole = slide.whole_pixels or slide.downsample(number) == wanted
        if off < _ROUNDING and whole and abs(slide.downsample(number) / wanted - 1) < 0.01:
            return number
    return None
