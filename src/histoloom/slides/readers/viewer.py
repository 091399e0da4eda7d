"""What a slide viewer needs: a slide as tiles at every power of two, and slides that stay open between requests.

Level n shows level 0 at 1 / 2 ** n: its pixel i stands for the level-0 pixels i * 2 ** n up to (i + 1) * 2 ** n. Level
0 is the slide itself, the last level fits into one tile. Tiles are squares of ``TILE`` px; those at the right and lower
edge are cut. Tiles laid side by side are what the reader gives for the whole level.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from histoloom.slides.entries import SlideError
from histoloom.slides.readers.base import Slide
from histoloom.slides.readers.open import open_slide
from histoloom.slides.readers.resample import Box

TILE = 256
"""px; the side of a tile."""

MAX_TILE_PIXELS = 2**24
"""Most pixels of the file that one tile may need; more would keep a viewer waiting for seconds."""

MAX_BYTES = 512 * 2**20
"""Most bytes of decoded pixels, over all open slides."""

CACHE_BYTES = 64 * 2**20
"""Most bytes of decoded pixels for each slide that is read in tiles."""

_ROUNDING = 1.0  # px of a level by which programs that write pyramids differ in rounding its size
_FLAT_BYTES_PER_PIXEL = 4  # Pillow keeps RGB in four bytes


class NoTile(LookupError):
    """There is no such tile; the message is one line."""


@dataclass(frozen=True)
class Tile:
    """A tile in px of its level: its upper left corner, and its size (``TILE``, or less at the edge)."""

    level: int
    left: int
    top: int
    width: int
    height: int

    @property
    def box(self) -> Box:
        """The level-0 px (left, top, right, bottom) that it stands for; at the edge it may reach over the slide."""
        scale = float(2**self.level)
        right, bottom = self.left + self.width, self.top + self.height
        return self.left * scale, self.top * scale, right * scale, bottom * scale


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
        """A tile by its column and row; raises ``NoTile`` where there is none."""
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
    factor = 2**tile.level
    for level, size in enumerate(slide.levels):
        size_error = max(abs(full / factor - side) for full, side in zip(slide.dimensions, size, strict=True))
        downsample = slide.downsample(level)
        readable = slide.whole_pixels or downsample == factor  # as stored, not blended between two pixels
        if size_error < _ROUNDING and readable and abs(downsample / factor - 1) < 0.01:
            return slide.stored(tile.left, tile.top, level=level, width=tile.width, height=tile.height)
    return slide.region(tile.box, shape=(tile.width, tile.height))


def pixels_needed(slide: Slide, tile: Tile) -> float:
    """About how many pixels of the file a tile is made from."""
    downsample = slide.downsample(slide.level_for(2.0**tile.level))
    return tile.width * tile.height * (2.0**tile.level / downsample) ** 2


def tile_of_picture(picture: np.ndarray, tile: Tile, *, dimensions: tuple[int, int]) -> np.ndarray:
    """A tile from a picture of the whole slide, whose size is ``dimensions``: uint8 (height, width, 3)."""
    height, width = picture.shape[:2]
    across, down = width / dimensions[0], height / dimensions[1]
    left, top, right, bottom = tile.box
    box = (left * across, top * down, min(right * across, width), min(bottom * down, height))
    return np.asarray(Image.fromarray(picture).resize((tile.width, tile.height), Image.Resampling.LANCZOS, box=box))


@dataclass(eq=False)
class _OpenSlide:
    """An open slide, how many threads use it, the memory it may hold, and its file's stamp when it was opened."""

    slide: Slide
    bytes: int
    stamp: tuple[int, int]
    users: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class SlideCache:
    """Open slides by their path, for many threads at once, in bounded memory.

    Where they would hold more than ``max_bytes``, those not in use are closed, the longest unused first.
    """

    def __init__(self, *, max_bytes: int = MAX_BYTES, cache_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes, self._cache_bytes = max_bytes, cache_bytes
        self._open: OrderedDict[Path, _OpenSlide] = OrderedDict()
        self._dropped: list[_OpenSlide] = []  # still in use; closed when their last user is done
        self._lock = threading.Lock()
        self._opening: dict[Path, threading.Lock] = {}
        weakref.finalize(self, _close_all, self._open)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def bytes(self) -> int:
        """Most memory that the open slides may hold."""
        with self._lock:
            return sum(entry.bytes for entry in self._open.values())

    @contextmanager
    def use(self, path: Path) -> Iterator[Slide]:
        """The slide at ``path``, open until the block ends; a file that was replaced is opened anew.

        Threads wait for each other where the slide's reader allows only one at a time. Raises ``SlideError``.
        """
        entry = self._acquire(path)
        try:
            with nullcontext() if entry.slide.concurrent else entry.lock:
                yield entry.slide
        finally:
            with self._lock:
                entry.users -= 1
                if entry.users == 0 and entry in self._dropped:
                    self._dropped.remove(entry)
                    entry.slide.close()
                self._make_room()

    def close(self) -> None:
        """Close every slide; those in use when their users are done."""
        with self._lock:
            for path in list(self._open):
                self._drop(path)

    def _acquire(self, path: Path) -> _OpenSlide:
        try:
            stat = path.stat()
        except OSError as error:
            raise SlideError("the file does not exist") from error
        stamp = (stat.st_size, stat.st_mtime_ns)  # changes when the file is replaced
        with self._lock:
            opening = self._opening.setdefault(path, threading.Lock())
        # One thread opens, others of the same slide wait; those of other slides do not.
        with opening:
            with self._lock:
                entry = self._open.get(path)
                if entry is not None and entry.stamp == stamp:
                    return self._use(path, entry)
                if entry is not None:
                    self._drop(path)
            slide = open_slide(path, cache_bytes=self._cache_bytes)
            needed = self._cache_bytes
            if slide.decodes_whole:
                needed = slide.dimensions[0] * slide.dimensions[1] * _FLAT_BYTES_PER_PIXEL
            if slide.decodes_whole and needed > self._max_bytes:
                slide.close()
                raise SlideError("is too large to be shown from a flat image; convert it to a tiled pyramidal TIFF")
            entry = _OpenSlide(slide, needed, stamp)
            with self._lock:
                self._open[path] = entry
                return self._use(path, entry)

    def _use(self, path: Path, entry: _OpenSlide) -> _OpenSlide:
        entry.users += 1
        self._open.move_to_end(path)
        self._make_room()
        return entry

    def _make_room(self) -> None:
        held = sum(entry.bytes for entry in self._open.values())
        for path, entry in list(self._open.items()):
            if held <= self._max_bytes:
                return
            if entry.users == 0:
                held -= entry.bytes
                self._drop(path)

    def _drop(self, path: Path) -> None:
        entry = self._open.pop(path)
        if entry.users:
            self._dropped.append(entry)
        else:
            entry.slide.close()


def _close_all(opened: OrderedDict[Path, _OpenSlide]) -> None:
    for entry in opened.values():
        entry.slide.close()
