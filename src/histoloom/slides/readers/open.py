"""``open_slide``: any slide file or image.

OpenSlide opens pyramids and scanner formats (pyramid.py); tifffile the TIFFs that OpenSlide does not (tiff.py), Pillow
flat images (here).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import final

import numpy as np
import openslide
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from histoloom.slides.entries import SlideEntry, SlideError
from histoloom.slides.readers import decoding
from histoloom.slides.readers.base import Slide
from histoloom.slides.readers.decoding import CACHE_BYTES, ORIENTATION, is_tiff, on_white, quiet, slide_errors
from histoloom.slides.readers.pyramid import PLAIN_VENDORS, PyramidSlide
from histoloom.slides.readers.samples import Alpha, rgb_on_white, used_range
from histoloom.slides.readers.scale import Scale, scale_from_dpi
from histoloom.slides.readers.tiff import TiffSlide, reads_better

# Pillow would try others too, some of which start other programs (EPS).
FLAT_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "JPEG2000")

_MAX_COARSEST_PIXELS = 2**34  # minutes of decoding for a thumbnail
# Opened in another way, such a file may show its label: MIRAX keeps it in the picture, SCN has it as its first page.
_SCANNER_SUFFIXES = {".mrxs", ".ndpi", ".scn", ".bif", ".vms", ".vmu", ".czi", ".dcm", ".dicom"}
_SIDES_SWAPPED = {5, 6, 7, 8}  # values of EXIF's orientation
_MULTI_FILE_VENDORS = {"mirax", "hamamatsu", "dicom"}  # their slides are more than the file that is opened


def open_slide(source: SlideEntry | Path, *, cache_bytes: int = CACHE_BYTES) -> Slide:
    """Open a slide of the inventory, or a file.

    The um/px of an entry overrides that of its file. ``cache_bytes`` bounds the decoded pixels that are kept; a flat
    image is kept whole. Raises ``SlideError``.
    """
    path = source.file if isinstance(source, SlideEntry) else source
    if not path.is_file():
        raise SlideError("is not a file" if path.exists() else "the file does not exist")

    # Which reader.
    with slide_errors(path):
        vendor = openslide.OpenSlide.detect_format(str(path))
        tiff = is_tiff(path)
    if vendor in (None, "generic-tiff") and path.suffix.lower() in _SCANNER_SUFFIXES:
        raise SlideError(f"is no {path.suffix.lower()} slide that OpenSlide can open, or lacks some of its files")
    slide: Slide
    if tiff and (vendor is None or (vendor in PLAIN_VENDORS and reads_better(path))):
        slide = TiffSlide(path, cache_bytes=cache_bytes)
    elif vendor is None:
        slide = FlatSlide(path)
    else:
        try:
            slide = PyramidSlide(path, cache_bytes=cache_bytes)
        except SlideError as error:
            # OpenSlide decodes fewer compressions of tiles than tifffile.
            if not error.detail or vendor not in PLAIN_VENDORS:
                raise
            slide = TiffSlide(path, cache_bytes=cache_bytes)

    # Whether its size is possible, and its coarsest level small enough for a thumbnail.
    try:
        decoding.check_size(slide.dimensions, stored=None if vendor in _MULTI_FILE_VENDORS else path.stat().st_size)
        width, height = slide.levels[-1]
        if width * height > _MAX_COARSEST_PIXELS:
            raise SlideError(
                f"has no level smaller than {width} x {height} px; convert it to a pyramidal TIFF with smaller levels"
            )
    except SlideError:
        slide.close()
        raise

    if isinstance(source, SlideEntry) and source.mpp is not None:
        slide.scale = Scale(source.mpp, source.mpp_source)
    return slide


@final
class FlatSlide(Slide):
    """A PNG, JPEG, WebP, BMP or JPEG 2000: one level, decoded whole at the first read, and kept until it is closed."""

    decodes_whole = True

    def __init__(self, path: Path) -> None:
        with slide_errors(path), _open_image(path) as image:
            size = image.size[::-1] if _orientation(image) in _SIDES_SWAPPED else image.size
            scale = scale_from_dpi(image.info.get("dpi"))
        if size[0] * size[1] > decoding.MAX_PIECE_PIXELS:
            raise SlideError(decoding.too_large(size[0] * size[1]))
        super().__init__([size], scale)
        self._path = path
        self._image: Image.Image | None = None

    def pixels(self, x: float, y: float, *, level: int, width: int, height: int) -> np.ndarray:
        """See ``Slide.pixels``."""
        assert level == 0, "a flat image has one level"
        if self._image is None:
            with slide_errors(self._path), _open_image(self._path) as image:
                whole = _decoded(image, path=self._path)
                if _orientation(image) != 1:
                    whole.info["exif"] = image.info["exif"]
                    whole = ImageOps.exif_transpose(whole)
                self._image = whole
        whole, left, top = self._image, int(x), int(y)
        if left >= 0 and top >= 0 and left + width <= whole.width and top + height <= whole.height:
            return np.asarray(whole.crop((left, top, left + width, top + height)))
        canvas = Image.new("RGB", (width, height), "white")
        canvas.paste(whole, (-left, -top))
        return np.asarray(canvas)

    def close(self) -> None:
        """See ``Slide.close``."""
        self._image = None


def _decoded(image: Image.Image, *, path: Path) -> Image.Image:
    """The whole image as RGB on white. Pillow clips grey of 16 bits, and takes the upper 8 of colours, used or not."""
    if isinstance(image, PngImageFile) and ";16" in str(image.tile[0].args):
        import imagecodecs  # only deep PNGs need it

        samples = np.atleast_3d(imagecodecs.png_decode(path.read_bytes()))
        alpha: Alpha | None = "straight" if samples.shape[2] in (2, 4) else None
        colours = samples[..., :-1] if alpha else samples
        return rgb_on_white(samples, largest=used_range(colours), alpha=alpha)
    if image.mode.startswith("I;16"):
        samples = np.asarray(image)[..., None].astype(np.uint16)
        return rgb_on_white(samples, largest=used_range(samples), alpha=None)
    transparent = image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info
    return on_white(image.convert("RGBA")) if transparent else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Orientation in the EXIF before the pixels; Pillow's ``getexif`` would decode a whole PNG to look behind them."""
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    return int(exif.get(ORIENTATION, 1))


@contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    with quiet, Image.open(path, formats=FLAT_FORMATS) as image:
        yield image
