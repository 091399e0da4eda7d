"""What the slide readers share: decoder errors in one line, limits on what a file may claim, and decoded tiles."""

from __future__ import annotations

import struct
import threading
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile
from PIL import Image

from histoloom.slides.entries import SlideError

NO_SLIDE = "is not a slide or image that OpenSlide, tifffile or Pillow can open"

MAX_SIDE = 4_000_000
"""px; a metre of tissue at 0.25 um/px"""

MAX_PIECE_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
"""Most px that are decoded in one piece (a tile, a strip, a whole PNG or JPEG): the limit at which Pillow refuses."""

CACHE_BYTES = 256 * 2**20

ORIENTATION = 274  # a tag of TIFF and EXIF; 1 is upright
_SMALL_PIXELS = 2**28
_PIXELS_PER_BYTE = 20_000  # an empty slide's table of 512-px tiles alone has a byte for 16,384 pixels
# What OpenSlide, Pillow, tifffile and imagecodecs raise on damaged files.
_DECODER_ERRORS = (
    openslide.OpenSlideError,
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    SyntaxError,
    EOFError,
    MemoryError,
    ZeroDivisionError,
    OverflowError,
    AssertionError,
    struct.error,
)


@contextmanager
def slide_errors(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into a ``SlideError`` of one line."""
    try:
        yield
    except SlideError:
        raise
    except Image.UnidentifiedImageError as error:
        raise SlideError(NO_SLIDE) from error
    except Image.DecompressionBombError as error:
        raise SlideError(too_large()) from error
    except _DECODER_ERRORS as error:
        text = str(error).replace(str(path), path.name) or type(error).__name__
        raise SlideError("cannot be read", detail=text) from error


def too_large(pixels: int | None = None) -> str:
    """The reason why an image that can only be decoded whole is refused."""
    size = f"{pixels / 1e6:.0f} megapixels, " if pixels else ""
    limit = MAX_PIECE_PIXELS / 1e6
    return f"is too large to decode in one piece ({size}at most {limit:.0f}); convert it to a tiled pyramidal TIFF"


def check_size(dimensions: tuple[int, int], *, stored: int | None) -> None:
    """Raise ``SlideError`` where no slide has such ``dimensions`` (px), or no file of ``stored`` bytes holds them."""
    width, height = dimensions
    if min(width, height) < 1 or max(width, height) > MAX_SIDE:
        raise SlideError(f"claims to be {width} x {height} px, which no slide is")
    pixels = width * height
    if stored is not None and pixels > _SMALL_PIXELS and pixels > _PIXELS_PER_BYTE * stored:
        raise SlideError(f"claims to be {width} x {height} px, which {stored} bytes cannot hold")


def check_upright(page: Any) -> None:
    """Raise ``SlideError`` where a TIFF's page is stored turned or mirrored: decoders turn each tile where it is."""
    orientation = 1 if page is None else int(page.tags.valueof(ORIENTATION, default=1))
    if orientation not in (0, 1):
        raise SlideError(f"is stored turned or mirrored (TIFF orientation {orientation}); save it upright")


def on_white(image: Image.Image) -> Image.Image:
    """An RGBA image as RGB; transparent pixels become white."""
    alpha = image.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return image.convert("RGB")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=alpha)
    return canvas


class _Quiet:
    """Silences tifffile's logger and Pillow's warning of large images while any thread is inside.

    Both switches are global to the process, so they are counted: the first thread in silences them, the last one out
    restores them. Saved and restored by each thread, overlapping uses would leave the logger disabled for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._restore = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                logger = tifffile.logger()
                self._restore.callback(setattr, logger, "disabled", logger.disabled)
                logger.disabled = True
                self._restore.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._restore.close()


quiet = _Quiet()
"""``with quiet:`` decodes without log lines and warnings: the readers check what matters themselves."""


def is_tiff(path: Path) -> bool:
    """Whether the file starts as TIFFs do."""
    with path.open("rb") as file:
        return file.read(4) in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}


@contextmanager
def open_tiff(path: Path) -> Iterator[Any]:
    """A ``tifffile.TiffFile``, closed afterwards."""
    with quiet, tifffile.TiffFile(path) as tiff:
        yield tiff


class TileCache:
    """The decoded tiles or strips that were used last, up to ``max_bytes``, and always the last one. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._tiles: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> np.ndarray | None:
        """The tile under ``key``; None where it is not kept."""
        with self._lock:
            if key in self._tiles:
                self._tiles.move_to_end(key)
            return self._tiles.get(key)

    def put(self, key: Hashable, tile: np.ndarray) -> None:
        """Keep a tile, and drop the longest unused ones where there is no room."""
        with self._lock:
            if key not in self._tiles:
                self._tiles[key] = tile
                self._bytes += tile.nbytes
            while self._bytes > self._max_bytes and len(self._tiles) > 1:
                self._bytes -= self._tiles.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Drop all tiles."""
        with self._lock:
            self._tiles.clear()
            self._bytes = 0


def overlaps(low: int, high: int, *, side: int, end: int) -> Iterator[tuple[int, slice, slice]]:
    """Along one axis: each tile's number, and the pixels that it shares with low..high, as slices of both."""
    first, last = max(low, 0), min(high, end)
    if first >= last:
        return
    for number in range(first // side, (last - 1) // side + 1):
        start, stop = max(first, number * side), min(last, (number + 1) * side)
        yield number, slice(start - low, stop - low), slice(start - number * side, stop - number * side)
