"""Slides as one thing: a square of level-0 pixels, read at any size without aliasing.

OpenSlide opens pyramids and scanner formats; tifffile the TIFFs that OpenSlide does not (tiff.py), Pillow flat images
(flat.py). All coordinates are level-0 pixels, origin at the upper left; images are RGB uint8 0..255 in (height, width,
3); what lies outside a slide, or was never scanned, is white. Of a file's images the slide alone is read, never its
label or macro.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Self, final

import numpy as np
import openslide
from PIL import Image

from histoloom.slides.entries import SlideEntry, SlideError
from histoloom.slides.readers import decoding, resolution
from histoloom.slides.readers.decoding import CACHE_BYTES, is_tiff, on_white, opened_tiff, quiet, reasons
from histoloom.slides.readers.jpeg_tiles import CACHE_BYTES as TILES_CACHE_BYTES
from histoloom.slides.readers.jpeg_tiles import VENDORS, JpegTiles
from histoloom.slides.readers.resample import SUPPORT, Box, resample

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

_BLOCK_SIDE = 4096  # px of a level that are read and filtered at once
_QUICK_PIXELS = 2**22  # beyond this, floats take too much memory, and Pillow can first reduce roughly
_ROUNDING = 1e-9
_MAX_COARSEST_PIXELS = 2**34  # minutes of decoding for a thumbnail
# Opened in another way, such a file may show its label: MIRAX keeps it in the picture, SCN has it as its first page.
_SCANNER_SUFFIXES = {".mrxs", ".ndpi", ".scn", ".bif", ".vms", ".vmu", ".czi", ".dcm", ".dicom"}
_MANY_FILES = {"mirax", "hamamatsu", "dicom"}  # vendors whose slides are more than the file that is opened


class Slide(ABC):
    """An open slide.

    ``dimensions`` are (width, height) at level 0; ``mpp`` is um/px there, None where unknown, and ``mpp_source`` says
    where it came from; ``levels`` are the (width, height) of each pyramid level. ``origin`` is the level-0 (x, y) of
    the scanned part, where viewers that crop to it, as QuPath does, count from. ``whole_pixels``: a region starts with
    the whole level pixel at or after its level-0 corner, not between two. ``concurrent``: several threads may read at
    once. Reading raises ``SlideError``.
    """

    origin: tuple[int, int] = (0, 0)
    whole_pixels = False
    concurrent = False

    def __init__(self, levels: list[tuple[int, int]], scale: resolution.Scale | None) -> None:
        self.levels = levels
        self.mpp: float | None = scale[0] if scale is not None else None
        self.mpp_source = scale[1] if scale is not None else ""

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
        """Let go of the file and of what was decoded."""

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

    def level_for(self, factor: float) -> int:
        """The coarsest level that is still as fine as wanted, within 1 %."""
        return max(i for i in range(len(self.levels)) if i == 0 or self.downsample(i) <= 1.01 * factor)

    def downsample(self, level: int) -> float:
        """Level-0 px a pixel of a level, by the two sizes; the mean of across and down."""
        (width, height), (level_width, level_height) = self.levels[0], self.levels[level]
        return (width / level_width + height / level_height) / 2

    def _resampled(self, box: tuple[float, float, float, float], *, shape: tuple[int, int]) -> np.ndarray:
        """A level-0 box at ``shape`` (width, height), by a Lanczos filter as wide as the reduction."""
        factor = min((box[2] - box[0]) / shape[0], (box[3] - box[1]) / shape[1])
        level = self.level_for(factor)
        downsample = self.downsample(level)
        margin = SUPPORT * max(1.0, factor / downsample) + 2
        spans = [
            _span(box[axis], box[axis + 2], downsample=downsample, margin=margin, count=count, full=full)
            for axis, count, full in zip((0, 1), self.levels[level], self.dimensions, strict=True)
        ]
        if not self.whole_pixels:
            spans = [_from_level_0(span, downsample=downsample) for span in spans]
        (x, width, left, right), (y, height, top, bottom) = spans
        pixels = self.pixels(x, y, level=level, width=width, height=height)
        return _lanczos(pixels, box=(left, top, right, bottom), shape=shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lanczos(pixels: np.ndarray, *, box: Box, shape: tuple[int, int]) -> np.ndarray:
    if pixels.shape[0] * pixels.shape[1] <= _QUICK_PIXELS:
        return resample(pixels, box=box, shape=shape)
    image = Image.fromarray(pixels)
    return np.asarray(image.resize(shape, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0))


_Span = tuple[float, int, float, float]


def _span(low: float, high: float, *, downsample: float, margin: float, count: int, full: int) -> _Span:
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


def _from_level_0(span: _Span, *, downsample: float) -> _Span:
    """The span that starts on the whole pixel of level 0 at or before it."""
    start, pixels, low, high = span
    moved = (start - math.floor(start)) / downsample
    return math.floor(start), pixels, max(0.0, low + moved), min(float(pixels), high + moved)


@final
class PyramidSlide(Slide):
    """A slide that OpenSlide opens."""

    concurrent = True

    def __init__(self, path: Path, *, cache_bytes: int = CACHE_BYTES) -> None:
        with reasons(path):
            self._file = openslide.OpenSlide(str(path))
            try:
                _check_tiles(self._file.properties)
                self._file.set_cache(openslide.OpenSlideCache(cache_bytes))
                scale = resolution.from_openslide(self._file.properties) or _tiff_scale(path)
            except BaseException:
                self._file.close()
                raise
            super().__init__([(int(w), int(h)) for w, h in self._file.level_dimensions], scale)
            self.origin = scanned_origin(self._file.properties)
            self._tiles = self._plain_tiles(path, cache_bytes=cache_bytes)
        self.whole_pixels = self._tiles is not None
        self._path = path

    def pixels(self, x: float, y: float, *, level: int, width: int, height: int) -> np.ndarray:
        """See ``Slide.pixels``."""
        with reasons(self._path):
            if self._tiles is None:
                return np.asarray(on_white(self._file.read_region((int(x), int(y)), level, (width, height))))
            left, top = (math.ceil(start / self.downsample(level) - _ROUNDING) for start in (x, y))
            return self._tiles.read(left, top, level=level, width=width, height=height)

    def close(self) -> None:
        """See ``Slide.close``."""
        self._file.close()
        if self._tiles is not None:
            self._tiles.close()

    def _plain_tiles(self, path: Path, *, cache_bytes: int) -> JpegTiles | None:
        """The slide's tiles where they can be read without OpenSlide, which is faster."""
        if self._file.properties.get("openslide.vendor") not in VENDORS:
            return None
        with quiet():
            return JpegTiles.open(path, levels=self.levels, cache_bytes=min(cache_bytes, TILES_CACHE_BYTES))


def _check_tiles(properties: Mapping[str, str]) -> None:
    """Raise ``SlideError`` for tiles so large that OpenSlide would end the process for want of memory."""
    for level in range(int(properties.get("openslide.level-count", "0"))):
        wide, high = (int(properties.get(f"openslide.level[{level}].tile-{side}", "0")) for side in ("width", "height"))
        if wide * high > decoding.MAX_PIECE_PIXELS:
            raise SlideError(decoding.too_large(wide * high))


def scanned_origin(properties: Mapping[str, str]) -> tuple[int, int]:
    """The level-0 (x, y) of what a scanner covered, from OpenSlide's properties; (0, 0) where it is not said."""
    names = (openslide.PROPERTY_NAME_BOUNDS_X, openslide.PROPERTY_NAME_BOUNDS_Y)
    x, y = (int(properties.get(name, 0)) for name in names)
    return x, y


def open_slide(source: SlideEntry | Path, *, mpp: float | None = None, cache_bytes: int = CACHE_BYTES) -> Slide:
    """Open a slide that was found, or a file.

    ``mpp`` (um/px) is for files that do not say it themselves; an entry brings its own. ``cache_bytes``: how much of
    what was decoded is kept; a flat image is kept whole. Raises ``SlideError``.
    """
    path = source.file if isinstance(source, SlideEntry) else source
    if not path.is_file():
        raise SlideError("is not a file" if path.exists() else "the file does not exist")
    slide = _opened(path, cache_bytes=cache_bytes)
    if isinstance(source, SlideEntry) and source.mpp is not None:
        slide.mpp, slide.mpp_source = source.mpp, source.mpp_source
    elif slide.mpp is None and mpp is not None:
        slide.mpp, slide.mpp_source = mpp, "given"
    return slide


def _opened(path: Path, *, cache_bytes: int) -> Slide:
    # These build on Slide; to import them at the top would go in a circle.
    from histoloom.slides.readers.flat import FlatSlide
    from histoloom.slides.readers.tiff import TiffSlide, is_ome

    with reasons(path):
        vendor = openslide.OpenSlide.detect_format(str(path))
        a_tiff = is_tiff(path)
    if vendor in (None, "generic-tiff") and path.suffix.lower() in _SCANNER_SUFFIXES:
        raise SlideError(f"is no {path.suffix.lower()} slide that OpenSlide can open, or lacks some of its files")
    if vendor is not None and not (vendor == "generic-tiff" and is_ome(path)):
        slide: Slide = PyramidSlide(path, cache_bytes=cache_bytes)
    else:
        slide = TiffSlide(path, cache_bytes=cache_bytes) if a_tiff else FlatSlide(path)
    try:
        _check_sizes(slide, stored=None if vendor in _MANY_FILES else path.stat().st_size)
    except SlideError:
        slide.close()
        raise
    return slide


def _check_sizes(slide: Slide, *, stored: int | None) -> None:
    decoding.check_size(slide.dimensions, stored=stored)
    width, height = slide.levels[-1]
    if width * height > _MAX_COARSEST_PIXELS:
        raise SlideError(
            f"has no level smaller than {width} x {height} px; convert it to a pyramidal TIFF with smaller levels"
        )


def _tiff_scale(path: Path) -> resolution.Scale | None:
    if not is_tiff(path):
        return None
    with opened_tiff(path) as tiff:
        return resolution.from_tiff(tiff)
