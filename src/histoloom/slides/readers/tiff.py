"""TIFFs that OpenSlide does not open, or of which it sees the finest level alone: OME-TIFF pyramids, strips, grey.

Strips and tiles are decoded as they are needed, so an image of any size takes the memory of what is read of it.
Label and macro images are other series of the file; they are never read.
"""

from __future__ import annotations

import math
import re
from contextlib import ExitStack
from functools import cached_property
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any, final
from xml.etree import ElementTree

import numpy as np
import tifffile
from PIL import Image

from histoloom.slides.entries import SlideError
from histoloom.slides.readers import decoding
from histoloom.slides.readers.base import Slide
from histoloom.slides.readers.decoding import (
    TileCache,
    check_upright,
    open_tiff,
    overlaps,
    quiet,
    slide_errors,
)
from histoloom.slides.readers.levels import Size, describes_aside, factors, is_aside
from histoloom.slides.readers.samples import Alpha, rgb_on_white, to_8_bits, used_range
from histoloom.slides.readers.scale import scale_from_tiff

_JPEG_XL = {50002, 52546}
# Values of TIFF's tags PhotometricInterpretation, ExtraSamples and Compression.
_WHITE_IS_ZERO, _PALETTE, _CMYK, _YCBCR = 0, 3, 5, 6
_READ_PHOTOMETRICS = {0, 1, 2, _PALETTE, _CMYK, _YCBCR}
_ALPHA_UNSAID, _ALPHA_STRAIGHT = 0, 2
_MAX_SAMPLE_VALUE = 281  # a tag
_JPEG = 7
_OF_KNOWN_LENGTH = {1, 5, 8, 32773, 32946, 34925, 50000}  # none, LZW, deflate, PackBits, LZMA, Zstandard
_OF_OWN_SIZE = {_JPEG, 33003, 33004, 33005, 34712, 50001}  # JPEG, JPEG 2000, WebP
_RANGE_FIELDS, _RANGE_SIDE = 6, 64  # fields along each side, and their px, in which the used range is looked up
_MAX_OME_PLANES = 4096
_MAX_OME_XML = 64 * 2**20


@final
class TiffSlide(Slide):
    """A TIFF read strip by strip or tile by tile: its largest series that is no label, with that series' levels."""

    whole_pixels = True

    def __init__(self, path: Path, *, cache_bytes: int = decoding.CACHE_BYTES) -> None:
        self._path = path
        with slide_errors(path), quiet, ExitStack() as on_error:
            self._tiff = tifffile.TiffFile(path)
            on_error.callback(self._tiff.close)
            check_ome(self._tiff.ome_metadata)
            finest, *coarser = _candidates(self._tiff)
            file_size = path.stat().st_size
            for page in finest:
                _check_page(page, file_size=file_size)
            check_upright(finest[0].keyframe)
            super().__init__([_size(finest)], scale_from_tiff(self._tiff, page=finest[0]))
            self._cache = TileCache(cache_bytes)
            self._levels = [finest]
            for pages in coarser:
                if factors(self.levels[-1], _size(pages)) is not None:
                    for page in pages:
                        _check_page(page, file_size=file_size)
                    self._add_level(_size(pages), pages, sources=self._levels, declared=self._tiff.is_ome)
            on_error.pop_all()

    def pixels(self, x: float, y: float, *, level: int, width: int, height: int) -> np.ndarray:
        """See ``Slide.pixels``."""
        left, top = round(x / self.downsample(level)), round(y / self.downsample(level))
        full = self.levels[level]
        box = (max(0, left), max(0, top), min(full[0], left + width), min(full[1], top + height))
        canvas = Image.new("RGB", (width, height), "white")
        if box[0] < box[2] and box[1] < box[3]:
            with slide_errors(self._path), quiet:
                samples = [self._samples(page, level=level, box=box) for page in self._levels[level]]
                image = _as_rgb(np.concatenate(samples, axis=2), page=self._levels[level][0], largest=self._largest)
            canvas.paste(image, (box[0] - left, box[1] - top))
        return np.asarray(canvas)

    @cached_property
    def _largest(self) -> int:
        """The largest value that samples have: as the file says, or as fields all over its coarsest level show."""
        (page, *_), (width, height) = self._levels[-1], self.levels[-1]
        declared = _declared_range(page.keyframe, xml=self._tiff.ome_metadata)
        if declared is not None:
            return declared
        colours = {2: 1, 4: 3}.get(page.keyframe.samplesperpixel)
        side = min(_RANGE_SIDE, width, height)
        seen = [
            self._samples(one, level=len(self.levels) - 1, box=(int(x), int(y), int(x) + side, int(y) + side))
            for one in self._levels[-1]
            for y in np.linspace(0, height - side, _RANGE_FIELDS)
            for x in np.linspace(0, width - side, _RANGE_FIELDS)
        ]
        return max(used_range(samples[..., :colours]) for samples in seen)

    def close(self) -> None:
        """See ``Slide.close``."""
        self._tiff.close()
        self._cache.clear()

    def _samples(self, page: Any, *, level: int, box: tuple[int, int, int, int]) -> np.ndarray:
        """Samples of a page as they are stored, (h, w, samples), in ``box`` (left, top, right, bottom)."""
        left, top, right, bottom = box
        if page.is_memmappable:
            size, samples = (page.imagelength, page.imagewidth), page.samplesperpixel
            planar = page.planarconfig == 2 and samples > 1
            dtype = page.dtype.newbyteorder(page.parent.byteorder)
            shape = (samples, *size) if planar else (*size, samples)
            mapped = np.memmap(self._path, dtype=dtype, mode="r", offset=page.dataoffsets[0], shape=shape)
            return (np.moveaxis(mapped, 0, -1) if planar else mapped)[top:bottom, left:right]
        keyframe = page.keyframe
        result = np.empty((bottom - top, right - left, keyframe.samplesperpixel), keyframe.dtype)
        (rows, columns), (high, wide) = _tile_grid(keyframe)
        planes = keyframe.samplesperpixel if keyframe.planarconfig == 2 else 1
        across = list(overlaps(left, right, side=wide, end=keyframe.imagewidth))
        down = overlaps(top, bottom, side=high, end=keyframe.imagelength)
        for (row, result_y, tile_y), (column, result_x, tile_x), plane in product(down, across, range(planes)):
            tile = self._tile(page, level=level, index=(plane * rows + row) * columns + column)
            channels = slice(plane, plane + 1) if planes > 1 else slice(None)
            result[result_y, result_x, channels] = tile[tile_y, tile_x]
        return result

    def _tile(self, page: Any, *, level: int, index: int) -> np.ndarray:
        """A decoded strip or tile, (h, w, samples); one that is not stored is empty glass."""
        key = (level, page.index, index)
        tile = self._cache.get(key)
        if tile is not None:
            return tile
        keyframe, ((rows, columns), (high, wide)) = page.keyframe, _tile_grid(page.keyframe)
        samples = 1 if keyframe.planarconfig == 2 else keyframe.samplesperpixel
        plane, place = divmod(index, rows * columns)
        count = int(page.databytecounts[index])
        if count == 0:
            tile = np.tile(_glass(keyframe)[plane : plane + samples], (high, wide, 1))
        else:
            self._tiff.filehandle.seek(int(page.dataoffsets[index]))
            data = self._tiff.filehandle.read(count)
            if int(keyframe.compression) in _JPEG_XL:
                import imagecodecs  # tifffile loads it as late

                # Pillow does not know its size; decoded into an array, what claims another one is refused before that.
                rest = high if keyframe.is_tiled else min(high, keyframe.imagelength - place // columns * high)
                tile = np.empty((rest, wide, samples), keyframe.dtype)
                imagecodecs.jpegxl_decode(data, out=tile if samples > 1 else tile[..., 0])
                self._cache.put(key, tile)
                return tile
            if int(keyframe.compression) in _OF_OWN_SIZE:
                # A compressed image says its own size, and a decoder would allocate that much.
                with Image.open(BytesIO(data), formats=("JPEG", "JPEG2000", "WEBP")) as image:
                    if image.width > wide or image.height > high:
                        raise SlideError(f"cannot be read: a tile of {wide} x {high} px says that it is {image.size}")
            tables = {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
            pixels, _, _ = keyframe.decode(data, index, **(tables if int(keyframe.compression) == _JPEG else {}))
            tile = np.asarray(pixels[0])
        self._cache.put(key, tile)
        return tile


def reads_better(path: Path) -> bool:
    """Whether ``TiffSlide`` should read a tiled TIFF that OpenSlide opens; False where it cannot be read.

    OpenSlide sees only the finest level of an OME-TIFF, takes 16 bits for their full range, and shows the white of
    CIELab as yellow.
    """
    try:
        with slide_errors(path), open_tiff(path) as tiff:
            finest = max(tiff.pages, key=lambda page: page.imagewidth).keyframe
            plain = finest.dtype == np.uint8 and int(finest.photometric) in _READ_PHOTOMETRICS
            return bool(tiff.is_ome) or not plain
    except SlideError:
        return False


def check_ome(xml: str | None) -> None:
    """Raise ``SlideError`` where OME-XML promises absurdly many planes, or names other files for them.

    tifffile would allocate every plane, and would open the other files. XML that does not parse is left to tifffile.
    """
    if not xml:
        return
    if len(xml) > _MAX_OME_XML:
        raise SlideError("cannot be read: its OME-XML is absurdly long")
    if "<!ENTITY" in xml or "<!DOCTYPE" in xml:
        raise SlideError("cannot be read: its OME-XML defines entities, which OME-XML never does")
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return
    uuid = root.get("UUID")
    for pixels in root.iterfind(".//{*}Pixels"):
        planes = 1
        for axis in "ZCT":
            try:
                planes *= max(1, int(pixels.get(f"Size{axis}") or "1"))
            except ValueError:
                continue
        if planes > _MAX_OME_PLANES:
            raise SlideError(f"is a stack of {planes} planes, not a grey or RGB image")
        for element in pixels.iterfind(".//{*}TiffData/{*}UUID"):
            if uuid is not None and element.text != uuid:
                raise SlideError("is one file of an OME data set of several; convert it to one OME-TIFF")


def _candidates(tiff: Any) -> list[list[Any]]:
    """The pages of the slide and of what may be its further levels, finest first.

    Each is one page, or one for each colour.
    """
    # The slide is the largest image that is not named as a label or an overview.
    if not tiff.series:
        raise SlideError(decoding.NO_SLIDE)
    named = [series for series in tiff.series if not is_aside(series.name or "")]
    if not named:
        raise SlideError("holds only a label or an overview, no slide")
    series = max(named, key=lambda series: int(np.prod([int(n) for n in series.shape[-3:]])))

    # tifffile gathers the levels of known formats; in a plain TIFF they are further pages, marked as reduced.
    first, *coarser = [_colour_pages(level) for level in series.levels]
    if not coarser and not tiff.is_ome:
        pages = [page for page in tiff.pages if page.is_reduced and not describes_aside(page.keyframe.description)]
        coarser = sorted(([page] for page in pages), key=_size, reverse=True)

    def layout(pages: list[Any]) -> tuple[object, ...]:
        keyframe = pages[0].keyframe
        return len(pages), keyframe.samplesperpixel, keyframe.dtype, keyframe.photometric == _PALETTE

    return [first, *(pages for pages in coarser if layout(pages) == layout(first))]


def _size(pages: list[Any]) -> Size:
    return pages[0].imagewidth, pages[0].imagelength


def _colour_pages(level: Any) -> list[Any]:
    """The page of a level, or its pages where each colour has one; ``SlideError`` where it is no grey or RGB image."""
    axes = dict(zip(level.axes, level.shape, strict=True))
    # S are the samples of a pixel, opacity among them; C are channels, of which only three can be red, green and blue.
    allowed = {"C": (1, 3), "S": (1, 2, 3, 4)}
    others = {axis for axis, n in axes.items() if axis not in "YX" and n not in allowed.get(axis, ())}
    colours = int(axes.get("C", 1))
    pages = [page for page in level.pages if page is not None]
    if others or not {"Y", "X"} <= axes.keys() or (colours > 1 and len(pages) not in (1, colours)):
        channels = f" ({axes['C']} channels, as of fluorescence)" if axes.get("C", 1) not in allowed["C"] else ""
        raise SlideError(f"is a stack of axes {level.axes} {level.shape}{channels}, not a grey or RGB image")
    if len(pages) == colours > 1 or pages[0].samplesperpixel in (1, 2, 3, 4):
        return pages if len(pages) == colours else pages[:1]
    raise SlideError(f"has {pages[0].samplesperpixel} samples a pixel, not grey or RGB")


def _check_page(page: Any, *, file_size: int) -> None:
    """Raise ``SlideError`` where a page's pixels cannot be read, or not in bounded memory."""
    keyframe = page.keyframe
    if int(keyframe.photometric) not in _READ_PHOTOMETRICS:
        raise SlideError(f"has colours of the kind {keyframe.photometric.name}, which is not read; convert it to RGB")
    if keyframe.dtype not in (np.uint8, np.uint16, np.bool_):
        raise SlideError(f"has pixels of type {keyframe.dtype}; convert it to 8-bit RGB")
    decoding.check_size((keyframe.imagewidth, keyframe.imagelength), stored=None)
    ends = (int(start) + int(n) for start, n in zip(page.dataoffsets, page.databytecounts, strict=True) if n)
    end = max(ends, default=0)
    if end > file_size:
        raise SlideError(f"cannot be read: it is cut short (its pixels end at byte {end}, the file at {file_size})")
    if page.is_memmappable:
        return
    if int(keyframe.compression) not in _OF_KNOWN_LENGTH | _OF_OWN_SIZE | _JPEG_XL:
        raise SlideError(f"is compressed in a way that is not read ({keyframe.compression!s}); convert it")
    (rows, columns), (high, wide) = _tile_grid(keyframe)
    tiles = rows * columns * (keyframe.samplesperpixel if keyframe.planarconfig == 2 else 1)
    if high * wide > decoding.MAX_PIECE_PIXELS:
        raise SlideError(decoding.too_large(high * wide))
    if len(page.dataoffsets) < tiles:
        raise SlideError(f"cannot be read: it has {len(page.dataoffsets)} of its {tiles} tiles or strips")


def _tile_grid(keyframe: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of tiles or strips, and the height and width of one."""
    if keyframe.is_tiled:
        high, wide = int(keyframe.tilelength), int(keyframe.tilewidth)
    else:
        high, wide = min(int(keyframe.rowsperstrip), keyframe.imagelength), keyframe.imagewidth
    if min(high, wide) < 1:
        raise SlideError(f"has tiles or strips of {wide} x {high} px")
    return (math.ceil(keyframe.imagelength / high), math.ceil(keyframe.imagewidth / wide)), (high, wide)


def _as_rgb(samples: np.ndarray, *, page: Any, largest: int) -> Image.Image:
    """Samples (h, w, 1 to 4) up to ``largest`` as an RGB image on white."""
    keyframe = page.keyframe
    photometric = int(keyframe.photometric)
    if photometric == _PALETTE:
        colours = keyframe.colormap[:, samples[..., 0]].transpose(1, 2, 0)
        return rgb_on_white(colours, largest=65_535 if keyframe.colormap.max() > 255 else 255, alpha=None)
    if samples.dtype == np.bool_:
        samples = samples.astype(np.uint8)
    if photometric == _CMYK or _is_ycbcr(keyframe):
        samples = np.ascontiguousarray(to_8_bits(samples, largest=largest))
        mode = "CMYK" if photometric == _CMYK else "YCbCr"
        return Image.frombytes(mode, (samples.shape[1], samples.shape[0]), samples.tobytes()).convert("RGB")
    alpha: Alpha | None = None
    if samples.shape[2] in (2, 4):
        kind = next((int(extra) for extra in keyframe.extrasamples), _ALPHA_UNSAID)
        if kind == _ALPHA_UNSAID and samples.shape[2] == 2:
            samples = samples[..., :1]
        else:
            # A fourth sample of a kind that is not said is premultiplied opacity, as libtiff and OpenSlide take it.
            alpha = "straight" if kind == _ALPHA_STRAIGHT else "premultiplied"
    if photometric == _WHITE_IS_ZERO:
        samples = np.concatenate([largest - np.minimum(samples[..., :1], largest), samples[..., 1:]], axis=2)
    return rgb_on_white(samples, largest=largest, alpha=alpha)


def _is_ycbcr(keyframe: Any) -> bool:
    """Whether samples come out of the decoder as YCbCr; decoders of JPEG and the like give RGB."""
    return int(keyframe.photometric) == _YCBCR and int(keyframe.compression) in _OF_KNOWN_LENGTH


def _glass(keyframe: Any) -> np.ndarray:
    """The samples of a pixel of empty glass, for tiles that are not stored."""
    full = True if keyframe.dtype == np.bool_ else np.iinfo(keyframe.dtype).max
    glass = np.full(keyframe.samplesperpixel, full, keyframe.dtype)
    photometric = int(keyframe.photometric)
    if photometric == _WHITE_IS_ZERO:
        glass[0] = 0
    elif photometric == _CMYK:
        glass[:4] = 0
    elif photometric == _PALETTE:
        glass[0] = int(keyframe.colormap.sum(axis=0, dtype=np.int64).argmax())
    elif _is_ycbcr(keyframe):
        glass[1:3] = 128
    return glass


def _declared_range(keyframe: Any, *, xml: str | None) -> int | None:
    """The largest value that samples can have by what the file says; None where 16 bits may hold fewer."""
    bits = max(np.atleast_1d(keyframe.bitspersample))
    if keyframe.dtype != np.uint16 or bits < 16:
        return 2 ** int(bits) - 1
    said = int(max(np.atleast_1d(keyframe.tags.valueof(_MAX_SAMPLE_VALUE, default=0))))
    significant = {int(text) for text in re.findall(r'SignificantBits="(\d{1,2})"', xml or "")}
    said = said or (2 ** significant.pop() - 1 if len(significant) == 1 else 0)
    return said if 255 <= said < 65_535 else None
