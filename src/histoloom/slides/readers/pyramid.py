"""Slides that OpenSlide opens: pyramids and scanner formats.

OpenSlide blends each region on a canvas of four channels, which costs more than to decode the JPEG tiles under it. A
slide that is a plain grid of such tiles (generic tiled TIFF and Aperio's SVS) is therefore read tile by tile, straight
from the file. The same libjpeg-turbo decodes them, and the pixels are OpenSlide's, bit by bit. OpenSlide reads all
other slides.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, final

import numpy as np
import openslide
import tifffile

from histoloom.slides.entries import SlideError
from histoloom.slides.readers import decoding
from histoloom.slides.readers.base import Slide
from histoloom.slides.readers.decoding import (
    CACHE_BYTES,
    TileCache,
    check_upright,
    is_tiff,
    on_white,
    open_tiff,
    overlaps,
    quiet,
    slide_errors,
)
from histoloom.slides.readers.levels import Size, describes_aside, following
from histoloom.slides.readers.scale import guess_from_power, scale_from_openslide, scale_from_tiff

PLAIN_VENDORS = frozenset({"aperio", "generic-tiff"})  # others stitch tiles, overlap them, or leave some out
TILES_CACHE_BYTES = 128 * 2**20

_ROUNDING = 1e-9
_JPEG = 7  # TIFF's tag Compression
_COLOUR_SPACES = {2: "RGB", 6: "YCBCR"}  # by TIFF's PhotometricInterpretation


@final
class PyramidSlide(Slide):
    """A slide that OpenSlide opens."""

    concurrent = True

    def __init__(self, path: Path, *, cache_bytes: int = CACHE_BYTES) -> None:
        with slide_errors(path), ExitStack() as on_error:
            self._file = openslide.OpenSlide(str(path))
            on_error.callback(self._file.close)
            properties = self._file.properties
            # OpenSlide would end the process for want of memory on a tile that is too large.
            for level in range(int(properties.get("openslide.level-count", "0"))):
                prefix = f"openslide.level[{level}].tile-"
                area = int(properties.get(f"{prefix}width", "0")) * int(properties.get(f"{prefix}height", "0"))
                if area > decoding.MAX_PIECE_PIXELS:
                    raise SlideError(decoding.too_large(area))
            self._file.set_cache(openslide.OpenSlideCache(cache_bytes))
            sizes = [(int(width), int(height)) for width, height in self._file.level_dimensions]
            scale, asides = scale_from_openslide(properties), set[Size]()
            plain = properties.get("openslide.vendor") in PLAIN_VENDORS
            if is_tiff(path) and (plain or scale is None):
                with open_tiff(path) as tiff:
                    finest = [page for page in tiff.pages if (page.imagewidth, page.imagelength) == sizes[0]]
                    if plain:
                        check_upright(finest[0].keyframe if finest else None)
                        named = [page for page in tiff.pages if describes_aside(page.keyframe.description)]
                        asides = {(page.imagewidth, page.imagelength) for page in named}
                    scale = scale or (scale_from_tiff(tiff, page=finest[0]) if finest else None)
            super().__init__(sizes[:1], scale or guess_from_power(properties))

            self.origin = scanned_origin(properties)
            self._path = path
            candidates = [number for number, size in enumerate(sizes) if number == 0 or size not in asides]
            candidates = following(candidates, sizes=sizes)
            self._tiles: JpegTiles | None = None
            if plain:
                with quiet:
                    cache, levels = min(cache_bytes, TILES_CACHE_BYTES), [sizes[number] for number in candidates]
                    self._tiles = JpegTiles.open(path, levels=levels, cache_bytes=cache)
            if self._tiles is not None:
                on_error.callback(self._tiles.close)
            self.whole_pixels = self._tiles is not None

            # OpenSlide takes any tiled image of a plain TIFF for a level, the label too.
            self._sources = [(0, 0)]
            for place, number in enumerate(candidates[1:], start=1):
                self._add_level(sizes[number], (place, number), sources=self._sources, declared=not plain)
            try:
                _ = self._file.level_count
            except openslide.OpenSlideError:  # after a damaged tile it would answer nothing more
                self._file = openslide.OpenSlide(str(path))
                on_error.callback(self._file.close)
            on_error.pop_all()

    def pixels(self, x: float, y: float, *, level: int, width: int, height: int) -> np.ndarray:
        """See ``Slide.pixels``."""
        with slide_errors(self._path):
            place, number = self._sources[level]
            if self._tiles is None:
                return np.asarray(on_white(self._file.read_region((int(x), int(y)), number, (width, height))))
            left, top = (math.ceil(start / self.downsample(level) - _ROUNDING) for start in (x, y))
            return self._tiles.read(left, top, level=place, width=width, height=height)

    def close(self) -> None:
        """See ``Slide.close``."""
        self._file.close()
        if self._tiles is not None:
            self._tiles.close()


def scanned_origin(properties: Mapping[str, str]) -> tuple[int, int]:
    """The level-0 (x, y) of what a scanner covered, from OpenSlide's properties; (0, 0) where they are missing."""
    names = (openslide.PROPERTY_NAME_BOUNDS_X, openslide.PROPERTY_NAME_BOUNDS_Y)
    x, y = (int(properties.get(name, 0)) for name in names)
    return x, y


@dataclass(frozen=True)
class TileGrid:
    """A pyramid level: its size and that of its tiles, px, and where each tile lies in the file, row by row.

    ``jpeg_tables`` are the quantisation and Huffman tables that the tiles share.
    """

    width: int
    height: int
    tile_width: int
    tile_height: int
    colour_space: str
    jpeg_tables: bytes | None
    offsets: Sequence[int]
    lengths: Sequence[int]

    @property
    def columns(self) -> int:
        """How many tiles lie side by side."""
        return math.ceil(self.width / self.tile_width)


class JpegTiles:
    """The levels of a slide, read tile by tile; the last used tiles stay decoded, up to ``cache_bytes``."""

    def __init__(self, file: BinaryIO, *, grids: Sequence[TileGrid], cache_bytes: int = TILES_CACHE_BYTES) -> None:
        self._file = file
        self._grids = grids
        self._cache = TileCache(cache_bytes)
        self._lock = threading.Lock()

    @staticmethod
    def open(
        path: Path, *, levels: Sequence[tuple[int, int]], cache_bytes: int = TILES_CACHE_BYTES
    ) -> JpegTiles | None:
        """The tiles of a TIFF whose pyramid has ``levels`` (width, height); None where any is not plain JPEG tiles."""
        with tifffile.TiffFile(path) as tiff:
            pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
            grids = [_tile_grid(pages, size=size, file_size=path.stat().st_size) for size in levels]
        plain = [grid for grid in grids if grid is not None]
        if not len(plain) == len(levels) > 0:
            return None
        return JpegTiles(path.open("rb"), grids=plain, cache_bytes=cache_bytes)

    def read(self, left: int, top: int, *, level: int, width: int, height: int) -> np.ndarray:
        """``width`` x ``height`` pixels of a level from its pixel (left, top): uint8 (height, width, 3).

        White outside the slide. Raises ``SlideError`` where a tile is damaged.
        """
        grid = self._grids[level]
        right, bottom = left + width, top + height
        if left >= 0 and top >= 0 and right <= grid.width and bottom <= grid.height:
            pixels = np.empty((height, width, 3), np.uint8)
        else:
            pixels = np.full((height, width, 3), 255, np.uint8)
        for row, region_y, tile_y in overlaps(top, bottom, side=grid.tile_height, end=grid.height):
            for column, region_x, tile_x in overlaps(left, right, side=grid.tile_width, end=grid.width):
                tile = self._tile(level, row * grid.columns + column)
                pixels[region_y, region_x] = tile[tile_y, tile_x]
        return pixels

    def close(self) -> None:
        """Close the file and drop the decoded tiles."""
        self._file.close()
        self._cache.clear()

    def _tile(self, level: int, number: int) -> np.ndarray:
        """A decoded tile; threads wait for each other while they read the file, not while they decode."""
        tile = self._cache.get((level, number))
        if tile is not None:
            return tile
        grid = self._grids[level]
        with self._lock:
            self._file.seek(grid.offsets[number])
            data = self._file.read(grid.lengths[number])
        import imagecodecs  # only plain pyramids need it

        # An array to decode into, so that a tile that claims to be larger is refused before anything is allocated.
        tile = np.empty((grid.tile_height, grid.tile_width, 3), np.uint8)
        try:
            imagecodecs.jpeg8_decode(
                data, tables=grid.jpeg_tables, colorspace=grid.colour_space, outcolorspace="RGB", out=tile
            )
        except (imagecodecs.Jpeg8Error, ValueError) as error:
            raise SlideError(f"cannot be read: tile {number} is damaged ({' '.join(str(error).split())})") from error
        self._cache.put((level, number), tile)
        return tile


def _tile_grid(pages: Sequence[Any], *, size: tuple[int, int], file_size: int) -> TileGrid | None:
    """The one page of ``size`` (width, height), where it is plain 8-bit colour JPEG tiles and all are there."""
    fitting = [page for page in pages if (page.imagewidth, page.imagelength) == size and page.is_tiled]
    if len(fitting) != 1:
        return None
    page = fitting[0]
    plain = (
        int(page.compression) == _JPEG
        and int(page.photometric) in _COLOUR_SPACES
        and page.samplesperpixel == 3
        and page.bitspersample == 8
        and int(page.planarconfig) == 1
        and page.imagedepth == 1
        and page.tiledepth == 1
    )
    if not plain:
        return None
    grid = TileGrid(
        *size,
        tile_width=int(page.tilewidth),
        tile_height=int(page.tilelength),
        colour_space=_COLOUR_SPACES[int(page.photometric)],
        jpeg_tables=page.jpegtables,
        offsets=page.dataoffsets,
        lengths=page.databytecounts,
    )
    count = grid.columns * math.ceil(grid.height / grid.tile_height)
    if not (len(grid.offsets) == len(grid.lengths) == count and min(grid.lengths, default=0) > 0):
        return None
    ends = (offset + length for offset, length in zip(grid.offsets, grid.lengths, strict=True))
    return grid if max(ends) <= file_size else None
