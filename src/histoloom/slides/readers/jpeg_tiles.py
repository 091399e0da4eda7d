"""The fast way to the pixels of JPEG-tiled TIFF slides: tile by tile, straight from the file.

OpenSlide pays for its generality: it blends each region on a canvas of four channels, which costs more than to decode
the JPEG tiles under it. Where a slide is a plain grid of such tiles (generic tiled TIFF and Aperio's SVS), the same
libjpeg-turbo decodes them here, and the pixels are OpenSlide's, bit by bit. Whatever is out of the ordinary is left to
OpenSlide.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import tifffile

from histoloom.slides.entries import SlideError

VENDORS = frozenset({"aperio", "generic-tiff"})  # others stitch tiles, overlap them, or leave some out
CACHE_BYTES = 128 * 2**20

_JPEG = 7
_COLOURS = {2: "RGB", 6: "YCBCR"}  # TIFF photometric: how the JPEG stream's three channels are meant


@dataclass(frozen=True)
class TileGrid:
    """A pyramid level: its size and that of its tiles, px, and where each tile lies in the file, row by row."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    colours: str
    tables: bytes | None
    offsets: Sequence[int]
    lengths: Sequence[int]

    @property
    def columns(self) -> int:
        """Tiles side by side."""
        return math.ceil(self.width / self.tile_width)


@dataclass(frozen=True)
class _Overlap:
    """What tile ``number`` gives to a region: the same pixels as slices of the region and of the tile."""

    number: int
    region: tuple[slice, slice]
    tile: tuple[slice, slice]


class JpegTiles:
    """The levels of a slide, read by the tile; decoded tiles are kept up to ``cache_bytes``, the last used ones."""

    def __init__(self, file: BinaryIO, *, grids: Sequence[TileGrid], cache_bytes: int = CACHE_BYTES) -> None:
        self._file = file
        self._grids = grids
        self._cache: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._cached, self._cache_bytes = 0, cache_bytes
        self._lock = threading.Lock()

    @staticmethod
    def open(path: Path, *, levels: Sequence[tuple[int, int]], cache_bytes: int = CACHE_BYTES) -> JpegTiles | None:
        """The tiles of a TIFF whose pyramid has ``levels`` (width, height); None where any is not plain JPEG tiles."""
        with tifffile.TiffFile(path) as tiff:
            pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
            grids = [_grid(pages, size=size, file_size=path.stat().st_size) for size in levels]
        plain = [grid for grid in grids if grid is not None]
        if not len(plain) == len(levels) > 0:
            return None
        return JpegTiles(path.open("rb"), grids=plain, cache_bytes=cache_bytes)

    def read(self, left: int, top: int, *, level: int, width: int, height: int) -> np.ndarray:
        """``width`` x ``height`` pixels of a level from its pixel (left, top): uint8 (height, width, 3).

        White outside the slide. Raises ``SlideError`` where a tile is damaged.
        """
        grid = self._grids[level]
        box = (left, top, left + width, top + height)
        inside = left >= 0 and top >= 0 and box[2] <= grid.width and box[3] <= grid.height
        pixels = (np.empty if inside else _white)((height, width, 3), np.uint8)
        for part in _overlaps(grid, box=box):
            pixels[part.region] = self._tile(level, part.number)[part.tile]
        return pixels

    def close(self) -> None:
        """Let go of the file and of what was decoded."""
        self._file.close()
        self._cache.clear()

    def _tile(self, level: int, number: int) -> np.ndarray:
        """A decoded tile; threads wait for each other while they look it up, not while they decode."""
        key = (level, number)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        tile = self._decoded(self._grids[level], number=number)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = tile
                self._cached += tile.nbytes
            while self._cached > self._cache_bytes and len(self._cache) > 1:
                self._cached -= self._cache.popitem(last=False)[1].nbytes
        return tile

    def _decoded(self, grid: TileGrid, *, number: int) -> np.ndarray:
        with self._lock:
            self._file.seek(grid.offsets[number])
            data = self._file.read(grid.lengths[number])
        # An array to decode into, so that a tile that claims to be larger is refused before anything is allocated.
        tile = np.empty((grid.tile_height, grid.tile_width, 3), np.uint8)
        try:
            imagecodecs.jpeg8_decode(data, tables=grid.tables, colorspace=grid.colours, outcolorspace="RGB", out=tile)
        except (imagecodecs.Jpeg8Error, ValueError) as error:
            raise SlideError(f"cannot be read: tile {number} is damaged ({' '.join(str(error).split())})") from error
        return tile


def _white(shape: tuple[int, ...], kind: type[np.uint8]) -> np.ndarray:
    return np.full(shape, 255, kind)


def _overlaps(grid: TileGrid, *, box: tuple[int, int, int, int]) -> Iterator[_Overlap]:
    """The tiles under ``box`` (left, top, right, bottom; px of the level), row by row."""
    for row, across_y, tile_y in _spans(box[1], box[3], side=grid.tile_height, end=grid.height):
        for column, across_x, tile_x in _spans(box[0], box[2], side=grid.tile_width, end=grid.width):
            yield _Overlap(row * grid.columns + column, (across_y, across_x), (tile_y, tile_x))


def _spans(low: int, high: int, *, side: int, end: int) -> Iterator[tuple[int, slice, slice]]:
    """Along one axis: each tile's number, and the pixels that it shares with low..high, counted from low and in it."""
    first, last = max(low, 0), min(high, end)
    if first >= last:
        return
    for number in range(first // side, (last - 1) // side + 1):
        start, stop = max(first, number * side), min(last, (number + 1) * side)
        yield number, slice(start - low, stop - low), slice(start - number * side, stop - number * side)


def _grid(pages: Sequence[Any], *, size: tuple[int, int], file_size: int) -> TileGrid | None:
    """The one page of ``size`` (width, height), where it is plain 8-bit colour JPEG tiles and all are there."""
    fitting = [page for page in pages if (page.imagewidth, page.imagelength) == size and page.is_tiled]
    if len(fitting) != 1 or not _is_plain(fitting[0]):
        return None
    page = fitting[0]
    grid = TileGrid(
        *size,
        tile_width=int(page.tilewidth),
        tile_height=int(page.tilelength),
        colours=_COLOURS[int(page.photometric)],
        tables=page.jpegtables,
        offsets=page.dataoffsets,
        lengths=page.databytecounts,
    )
    count = grid.columns * math.ceil(grid.height / grid.tile_height)
    whole = len(grid.offsets) == len(grid.lengths) == count and min(grid.lengths, default=0) > 0
    ends = (offset + length for offset, length in zip(grid.offsets, grid.lengths, strict=True)) if whole else iter(())
    return grid if whole and max(ends) <= file_size else None


def _is_plain(page: Any) -> bool:
    return (
        int(page.compression) == _JPEG
        and int(page.photometric) in _COLOURS
        and page.samplesperpixel == 3
        and page.bitspersample == 8
        and int(page.planarconfig) == 1
        and page.imagedepth == 1
        and page.tiledepth == 1
    )
