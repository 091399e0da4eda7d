"""What the readers of slides share: errors in one line, limits on what a file may claim, quiet TIFFs."""

from __future__ import annotations

import struct
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openslide
import tifffile
from PIL import Image

from histoloom.slides.entries import SlideError

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_SLIDE = "is not a slide or image that OpenSlide, tifffile or Pillow can open"

MAX_SIDE = 4_000_000
"""px; a metre of tissue at 0.25 um/px"""

MAX_PIECE_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
"""What is decoded in one piece: a tile, a strip, a whole PNG or JPEG; where Pillow itself refuses."""

CACHE_BYTES = 256 * 2**20

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
def reasons(path: Path) -> Iterator[None]:
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
    shown = f"{pixels / 1e6:.0f} megapixels, " if pixels else ""
    limit = MAX_PIECE_PIXELS / 1e6
    return f"is too large to decode in one piece ({shown}at most {limit:.0f}); convert it to a tiled pyramidal TIFF"


def check_size(dimensions: tuple[int, int], *, stored: int | None) -> None:
    """Raise ``SlideError`` where no slide has such ``dimensions`` (px), or no file of ``stored`` bytes holds them."""
    width, height = dimensions
    if min(width, height) < 1 or max(width, height) > MAX_SIDE:
        raise SlideError(f"claims to be {width} x {height} px, which no slide is")
    pixels = width * height
    if stored is not None and pixels > _SMALL_PIXELS and pixels > _PIXELS_PER_BYTE * stored:
        raise SlideError(f"claims to be {width} x {height} px, which {stored} bytes cannot hold")


def on_white(image: Image.Image) -> Image.Image:
    """An RGBA image as RGB, what is transparent white."""
    alpha = image.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return image.convert("RGB")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=alpha)
    return canvas


def is_tiff(path: Path) -> bool:
    """Whether the file starts as TIFFs do."""
    with path.open("rb") as file:
        return file.read(4) in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}


@contextmanager
def quiet() -> Iterator[None]:
    """tifffile logs what it finds wrong, Pillow warns; what matters of that, the readers check themselves."""
    logger = tifffile.logger()
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        logger.disabled = disabled


@contextmanager
def opened_tiff(path: Path) -> Iterator[Any]:
    """A ``tifffile.TiffFile``, closed afterwards."""
    with quiet(), tifffile.TiffFile(path) as tiff:
        yield tiff
