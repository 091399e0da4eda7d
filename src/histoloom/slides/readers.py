"""Slides as one thing: a square of level-0 pixels, read at any size without aliasing.

OpenSlide opens pyramids and scanner formats; Pillow and tifffile open flat images. All coordinates are level-0
pixels, origin at the upper left; images are RGB uint8 0..255 in (height, width, 3); what lies outside a slide, or was
never scanned, is white.
"""

from __future__ import annotations

import math
import struct
import warnings
from abc import ABC, abstractmethod
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

import numpy as np
import openslide
import tifffile
from PIL import Image

from histoloom.slides import resolution
from histoloom.slides.entries import SlideEntry, SlideError
from histoloom.slides.resample import SUPPORT, Box, resample
from histoloom.slides.tiles import VENDORS, JpegTiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

MAX_FLAT_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)  # where Pillow itself refuses
CACHE_BYTES = 256 * 2**20
_BAND_PIXELS = 2**24
_QUICK_PIXELS = 2**22  # beyond this, floats take too much memory, and Pillow can first reduce roughly
_ROUNDING = 1e-9
_PILLOW_PHOTOMETRICS = {0, 3, 5}  # white is zero, palette, CMYK: tifffile returns these undecoded
# What Pillow, tifffile and imagecodecs raise on damaged files.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    IndexError,
    TypeError,
    SyntaxError,
    EOFError,
    MemoryError,
    ZeroDivisionError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
)


class Slide(ABC):
    """An open slide.

    ``dimensions`` are (width, height) at level 0; ``mpp`` is um/px there, None where unknown, and ``mpp_source`` says
    where it came from; ``levels`` are the (width, height) of each pyramid level. ``origin`` is the level-0 (x, y) of
    the scanned part, where viewers that crop to it, as QuPath does, count from. ``whole_pixels``: a region starts with
    the whole level pixel at or after its level-0 corner, not between two. Reading raises ``SlideError``.
    """

    origin: tuple[int, int] = (0, 0)

    def __init__(self, levels: list[tuple[int, int]], scale: resolution.Scale | None) -> None:
        self.levels = levels
        self.whole_pixels = False
        self.mpp: float | None = scale[0] if scale is not None else None
        self.mpp_source = scale[1] if scale is not None else ""

    @property
    def dimensions(self) -> tuple[int, int]:
        """(width, height) at level 0, px."""
        return self.levels[0]

    @abstractmethod
    def pixels(self, x: int, y: int, *, level: int, width: int, height: int) -> np.ndarray:
        """Pixels of a level, ``width`` x ``height`` of its own, from level-0 (x, y): uint8 (height, width, 3).

        White outside the slide.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the file and of what was decoded."""

    def region(self, x: int, y: int, *, level: int, width: int, height: int) -> Image.Image:
        """``pixels`` as an RGB image."""
        return Image.fromarray(self.pixels(x, y, level=level, width=width, height=height))

    def read(self, x: float, y: float, *, extent: float, size: int) -> np.ndarray:
        """The level-0 square of side ``extent`` px at (x, y), resampled to uint8 (size, size, 3)."""
        return self._resampled((x, y, x + extent, y + extent), shape=(size, size))

    def thumbnail(self, max_side: int) -> np.ndarray:
        """The whole slide, uint8 (h, w, 3), its longer side at most ``max_side`` px."""
        width, height = self.dimensions
        factor = max(1.0, max(width, height) / max_side)
        shape = (max(1, round(width / factor)), max(1, round(height / factor)))
        level_width, level_height = self.levels[self._level(factor)]
        bands = min(shape[1], math.ceil(level_width * level_height / _BAND_PIXELS))
        edges = np.linspace(0, shape[1], bands + 1).round().astype(int)
        result = np.empty((shape[1], shape[0], 3), np.uint8)
        for first, last in pairwise(edges):
            box = (0.0, first * height / shape[1], float(width), last * height / shape[1])
            result[first:last] = self._resampled(box, shape=(shape[0], int(last - first)))
        return result

    def _level(self, factor: float) -> int:
        """The coarsest level that is still as fine as wanted, within 1 %."""
        return max(i for i in range(len(self.levels)) if i == 0 or self._downsample(i) <= 1.01 * factor)

    def _downsample(self, level: int) -> float:
        (width, height), (level_width, level_height) = self.levels[0], self.levels[level]
        return (width / level_width + height / level_height) / 2

    def _resampled(self, box: tuple[float, float, float, float], *, shape: tuple[int, int]) -> np.ndarray:
        """A level-0 box at ``shape`` (width, height), by a Lanczos filter as wide as the reduction."""
        factor = min((box[2] - box[0]) / shape[0], (box[3] - box[1]) / shape[1])
        level = self._level(factor)
        downsample = self._downsample(level)
        margin = SUPPORT * max(1.0, factor / downsample) + 2
        spans = [
            _span(
                box[axis],
                box[axis + 2],
                downsample=downsample,
                margin=margin,
                count=count,
                full=full,
                whole=self.whole_pixels,
            )
            for axis, count, full in zip((0, 1), self.levels[level], self.dimensions, strict=True)
        ]
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


def _span(
    low: float, high: float, *, downsample: float, margin: float, count: int, full: int, whole: bool
) -> tuple[int, int, float, float]:
    """Along one axis: level-0 start and level pixels to read, and where low and high then lie among them.

    The margin gives the filter its neighbours; it stops at the slide's edge, so that no white leaks in there.
    """
    first_wanted, last_wanted = low / downsample, high / downsample
    if high <= full:
        last_wanted = min(last_wanted, count)
    first = math.floor(first_wanted) if low < 0 else max(0, math.floor(first_wanted - margin))
    last = math.ceil(last_wanted) if high > full else min(count, math.ceil(last_wanted + margin))
    start = math.floor(first * downsample)
    origin, pixels = first if whole else start / downsample, last - first
    return start, pixels, max(0.0, first_wanted - origin), min(float(pixels), last_wanted - origin)


@final
class PyramidSlide(Slide):
    """A slide that OpenSlide opens."""

    def __init__(self, path: Path) -> None:
        with _reasons(path):
            self._file = openslide.OpenSlide(str(path))
            self._file.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
            scale = resolution.from_openslide(self._file.properties) or _tiff_scale(path)
            super().__init__([(int(w), int(h)) for w, h in self._file.level_dimensions], scale)
            self.origin = scanned_origin(self._file.properties)
            self._tiles = self._plain_tiles(path)
        self.whole_pixels = self._tiles is not None
        self._path = path

    def pixels(self, x: int, y: int, *, level: int, width: int, height: int) -> np.ndarray:
        """See ``Slide.pixels``."""
        with _reasons(self._path):
            if self._tiles is None:
                return np.asarray(_on_white(self._file.read_region((x, y), level, (width, height))))
            left, top = (math.ceil(start / self._downsample(level) - _ROUNDING) for start in (x, y))
            return self._tiles.read(left, top, level=level, width=width, height=height)

    def close(self) -> None:
        """See ``Slide.close``."""
        self._file.close()
        if self._tiles is not None:
            self._tiles.close()

    def _plain_tiles(self, path: Path) -> JpegTiles | None:
        """The slide's tiles where they can be read without OpenSlide, which is faster."""
        if self._file.properties.get("openslide.vendor") not in VENDORS:
            return None
        with _quiet_tifffile():
            return JpegTiles.open(path, levels=self.levels)


@final
class FlatSlide(Slide):
    """An image of one level; it is decoded once, at the first read, and kept while the slide is open."""

    def __init__(self, path: Path) -> None:
        with _reasons(path):
            size, scale = _tiff_header(path) if _is_tiff(path) else _image_header(path)
        if size[0] * size[1] > MAX_FLAT_PIXELS:
            raise SlideError(_too_large(size[0] * size[1]))
        super().__init__([size], scale)
        self._path = path
        self._image: Image.Image | None = None

    def pixels(self, x: int, y: int, *, level: int, width: int, height: int) -> np.ndarray:
        """See ``Slide.pixels``."""
        assert level == 0, "a flat image has one level"
        image = self._decoded()
        box = (x, y, x + width, y + height)
        if x >= 0 and y >= 0 and box[2] <= image.width and box[3] <= image.height:
            return np.asarray(image.crop(box))
        canvas = Image.new("RGB", (width, height), "white")
        canvas.paste(image, (-x, -y))
        return np.asarray(canvas)

    def close(self) -> None:
        """See ``Slide.close``."""
        self._image = None

    def _decoded(self) -> Image.Image:
        if self._image is None:
            with _reasons(self._path):
                self._image = _tiff_pixels(self._path) if _is_tiff(self._path) else _image_pixels(self._path)
        return self._image


def scanned_origin(properties: Mapping[str, str]) -> tuple[int, int]:
    """The level-0 (x, y) of what a scanner covered, from OpenSlide's properties; (0, 0) where it is not said."""
    names = (openslide.PROPERTY_NAME_BOUNDS_X, openslide.PROPERTY_NAME_BOUNDS_Y)
    x, y = (int(properties.get(name, 0)) for name in names)
    return x, y


def open_slide(source: SlideEntry | Path, *, mpp: float | None = None) -> Slide:
    """Open a slide that was found, or a file.

    ``mpp`` (um/px) is for files that do not say it themselves; an entry brings its own. Raises ``SlideError``.
    """
    path = source.file if isinstance(source, SlideEntry) else source
    if not path.is_file():
        raise SlideError("the file does not exist")
    slide: Slide = PyramidSlide(path) if _openslide_knows(path) else FlatSlide(path)
    if isinstance(source, SlideEntry) and source.mpp is not None:
        slide.mpp, slide.mpp_source = source.mpp, source.mpp_source
    elif slide.mpp is None and mpp is not None:
        slide.mpp, slide.mpp_source = mpp, "given"
    return slide


def _openslide_knows(path: Path) -> bool:
    with _reasons(path):
        return openslide.OpenSlide.detect_format(str(path)) is not None


@contextmanager
def _reasons(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into a ``SlideError`` of one line."""
    try:
        yield
    except SlideError:
        raise
    except Image.UnidentifiedImageError as error:
        raise SlideError("is not a slide or image that OpenSlide, tifffile or Pillow can open") from error
    except Image.DecompressionBombError as error:
        raise SlideError(_too_large(None)) from error
    except (openslide.OpenSlideError, *_DECODER_ERRORS) as error:
        text = " ".join(str(error).split()).replace(str(path), path.name)
        raise SlideError(f"cannot be read: {text or type(error).__name__}") from error


def _too_large(pixels: int | None) -> str:
    shown = f"{pixels / 1e6:.0f} megapixels, " if pixels else ""
    limit = MAX_FLAT_PIXELS / 1e6
    return f"is too large for a flat image ({shown}at most {limit:.0f}); convert it to a tiled pyramidal TIFF"


def _on_white(image: Image.Image) -> Image.Image:
    alpha = image.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return image.convert("RGB")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=alpha)
    return canvas


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}


def _tiff_scale(path: Path) -> resolution.Scale | None:
    if not _is_tiff(path):
        return None
    with _opened_tiff(path) as tiff:
        return resolution.from_tiff(tiff)


@contextmanager
def _opened_image(path: Path) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            yield image


def _image_header(path: Path) -> tuple[tuple[int, int], resolution.Scale | None]:
    with _opened_image(path) as image:
        return image.size, resolution.from_dpi(image.info.get("dpi"))


def _image_pixels(path: Path) -> Image.Image:
    with _opened_image(path) as image:
        image.load()
        if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
            return _on_white(image.convert("RGBA"))
        return image.convert("RGB")


@contextmanager
def _opened_tiff(path: Path) -> Iterator[Any]:
    with _quiet_tifffile(), tifffile.TiffFile(path) as tiff:
        yield tiff


@contextmanager
def _quiet_tifffile() -> Iterator[None]:
    """tifffile logs what it finds wrong and goes on; what matters of that is told by ``_check_whole``."""
    logger = tifffile.logger()
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


def _check_whole(page: Any, *, size: int) -> None:
    """Raise ``SlideError`` where a page's pixels reach beyond a file of ``size`` bytes."""
    end = max((int(a) + int(n) for a, n in zip(page.dataoffsets, page.databytecounts, strict=True)), default=0)
    if end > size:
        raise SlideError(f"cannot be read: it is cut short (its pixels end at byte {end}, the file at {size})")


def _tiff_header(path: Path) -> tuple[tuple[int, int], resolution.Scale | None]:
    with _opened_tiff(path) as tiff:
        _check_whole(tiff.pages[0], size=path.stat().st_size)
        level = tiff.series[0].levels[0]
        axes = dict(zip(level.axes, level.shape, strict=True))
        others = {axis: n for axis, n in axes.items() if axis not in "YXSC" or (axis in "SC" and n not in (1, 3, 4))}
        if others or not {"Y", "X"} <= axes.keys():
            raise SlideError(f"is a stack of axes {level.axes} {level.shape}, not a grey or RGB image")
        return (int(axes["X"]), int(axes["Y"])), resolution.from_tiff(tiff)


def _tiff_pixels(path: Path) -> Image.Image:
    with _opened_tiff(path) as tiff:
        level = tiff.series[0].levels[0]
        if int(tiff.pages[0].photometric) in _PILLOW_PHOTOMETRICS:
            return _image_pixels(path)
        pixels, axes = level.asarray(), level.axes
    if pixels.ndim == 3 and axes[0] in "SC":
        pixels = np.moveaxis(pixels, 0, -1)
    return _as_rgb(pixels)


def _as_rgb(pixels: Any) -> Image.Image:
    """8- or 16-bit grey, RGB or RGBA samples (h, w[, samples]) as an RGB image on white."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise SlideError(f"has pixels of type {pixels.dtype}; convert it to 8-bit RGB")
    image = Image.fromarray(np.ascontiguousarray(pixels.squeeze(-1) if pixels.shape[2:] == (1,) else pixels))
    return _on_white(image) if image.mode == "RGBA" else image.convert("RGB")
