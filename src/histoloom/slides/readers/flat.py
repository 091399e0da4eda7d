"""Flat images (PNG, JPEG, WebP, BMP, JPEG 2000), which can only be decoded whole."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from PIL import Image

from histoloom.slides.entries import SlideError
from histoloom.slides.readers import decoding, resolution
from histoloom.slides.readers.decoding import on_white, quiet, reasons
from histoloom.slides.readers.open import Slide

if TYPE_CHECKING:
    from collections.abc import Iterator

# Pillow would try others too, some of which start foreign programs (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "JPEG2000")


@final
class FlatSlide(Slide):
    """An image of one level; it is decoded once, at the first read, and kept while the slide is open."""

    def __init__(self, path: Path) -> None:
        with reasons(path), _opened(path) as image:
            size, scale = image.size, resolution.from_dpi(image.info.get("dpi"))
        if size[0] * size[1] > decoding.MAX_PIECE_PIXELS:
            raise SlideError(decoding.too_large(size[0] * size[1]))
        super().__init__([size], scale)
        self._path = path
        self._image: Image.Image | None = None

    def pixels(self, x: float, y: float, *, level: int, width: int, height: int) -> np.ndarray:
        """See ``Slide.pixels``."""
        assert level == 0, "a flat image has one level"
        image = self._decoded()
        left, top = int(x), int(y)
        if left >= 0 and top >= 0 and left + width <= image.width and top + height <= image.height:
            return np.asarray(image.crop((left, top, left + width, top + height)))
        canvas = Image.new("RGB", (width, height), "white")
        canvas.paste(image, (-left, -top))
        return np.asarray(canvas)

    def close(self) -> None:
        """See ``Slide.close``."""
        self._image = None

    def _decoded(self) -> Image.Image:
        if self._image is None:
            with reasons(self._path), _opened(self._path) as image:
                image.load()
                self._image = _rgb(image)
        return self._image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        return on_white(image.convert("RGBA"))
    return image.convert("RGB")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with quiet(), Image.open(path, formats=FORMATS) as image:
        yield image
