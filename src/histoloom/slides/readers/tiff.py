"""TIFFs that OpenSlide does not open, or of which it sees the finest level alone: OME-TIFF pyramids, strips, grey.

Strips and tiles are decoded as they are needed, so an image of any size takes the memory of what is read of it.
Label and macro images are other series of the file; they are never read.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any, final

import numpy as np
import tifffile
from PIL import Image

from histoloom.slides.entries import SlideError
from histoloom.slides.readers import decoding, resolution
from histoloom.slides.readers.decoding import on_white, opened_tiff, quiet, reasons
from histoloom.slides.readers.ome import check_ome
from histoloom.slides.readers.open import Slide

_NOT_TISSUE = re.compile("label|macro|overview|thumbnail", re.IGNORECASE)
_WHITE_IS_ZERO, _PALETTE, _CMYK, _YCBCR = 0, 3, 5, 6
_ALPHA = {1, 2}
_JPEG = 7
_OF_KNOWN_LENGTH = {1, 5, 8, 32773, 32946, 34925, 50000}  # none, LZW, deflate, PackBits, LZMA, Zstandard
_OF_OWN_SIZE = {_JPEG, 33003, 33004, 33005, 34712, 50001}  # JPEG, JPEG 2000, WebP
_ASPECT_TOLERANCE = 0.05


@final
class TiffSlide(Slide):
    """A TIFF read strip by strip or tile by tile: its largest series that is no label, with that series' levels."""

    whole_pixels = True

    def __init__(self, path: Path, *, cache_bytes: int = decoding.CACHE_BYTES) -> None:
        self._path = path
        with reasons(path), quiet():
            self._tiff = tifffile.TiffFile(path)
            try:
                check_ome(self._tiff.ome_metadata)
                self._levels = _levels(self._tiff, size=path.stat().st_size)
                scale = resolution.from_tiff(self._tiff)
            except BaseException:
                self._tiff.close()
                raise
        super().__init__([(planes[0].imagewidth, planes[0].imagelength) for planes in self._levels], scale)
        self._cache = _Cache(cache_bytes)

    def pixels(self, x: float, y: float, *, level: int, width: int, height: int) -> np.ndarray:
        """See ``Slide.pixels``."""
        left, top = round(x / self.downsample(level)), round(y / self.downsample(level))
        full = self.levels[level]
        box = (max(0, left), max(0, top), min(full[0], left + width), min(full[1], top + height))
        canvas = Image.new("RGB", (width, height), "white")
        if box[0] < box[2] and box[1] < box[3]:
            with reasons(self._path), quiet():
                samples = [self._samples(page, level=level, box=box) for page in self._levels[level]]
                image = _as_rgb(np.concatenate(samples, axis=2), page=self._levels[level][0])
            canvas.paste(image, (box[0] - left, box[1] - top))
        return np.asarray(canvas)

    def close(self) -> None:
        """See ``Slide.close``."""
        self._tiff.close()
        self._cache.clear()

    def _samples(self, page: Any, *, level: int, box: tuple[int, int, int, int]) -> np.ndarray:
        """Undecorated samples of a page, (h, w, samples), in ``box`` (left, top, right, bottom)."""
        left, top, right, bottom = box
        if page.is_memmappable:
            return _mapped(page, path=self._path)[top:bottom, left:right]
        keyframe = page.keyframe
        result = np.empty((bottom - top, right - left, keyframe.samplesperpixel), keyframe.dtype)
        (rows, columns), (high, wide) = _grid(keyframe)
        planes = keyframe.samplesperpixel if keyframe.planarconfig == 2 else 1
        for plane, row, column in product(
            range(planes), range(top // high, -(-bottom // high)), range(left // wide, -(-right // wide))
        ):
            index = (plane * rows + row) * columns + column
            piece = self._piece(page, level=level, index=index)
            y0, x0 = max(top, row * high), max(left, column * wide)
            y1, x1 = min(bottom, (row + 1) * high), min(right, (column + 1) * wide)
            channels = slice(plane, plane + 1) if planes > 1 else slice(None)
            part = piece[y0 - row * high : y1 - row * high, x0 - column * wide : x1 - column * wide]
            result[y0 - top : y1 - top, x0 - left : x1 - left, channels] = part
        return result

    def _piece(self, page: Any, *, level: int, index: int) -> np.ndarray:
        """A decoded strip or tile, (h, w, samples); one that is not stored is empty glass."""
        key = (level, page.index, index)
        found = self._cache.get(key)
        if found is None:
            found = _decoded(page, tiff=self._tiff, index=index)
            self._cache.put(key, found)
        return found


class _Cache:
    """The pieces that were used last, up to so many bytes, and always the last one."""

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._pieces: OrderedDict[tuple[Any, ...], np.ndarray] = OrderedDict()

    def get(self, key: tuple[Any, ...]) -> np.ndarray | None:
        if key in self._pieces:
            self._pieces.move_to_end(key)
        return self._pieces.get(key)

    def put(self, key: tuple[Any, ...], piece: np.ndarray) -> None:
        self._pieces[key] = piece
        self._held += piece.nbytes
        while self._held > self._most and len(self._pieces) > 1:
            self._held -= self._pieces.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        self._pieces.clear()
        self._held = 0


def is_ome(path: Path) -> bool:
    """Whether a TIFF carries OME-XML; False where that cannot be told."""
    try:
        with reasons(path), opened_tiff(path) as tiff:
            return bool(tiff.is_ome)
    except SlideError:
        return False


def _levels(tiff: Any, *, size: int) -> list[list[Any]]:
    """The pages of each level, finest first; a level is one page, or one for each colour."""
    found = [_planes(level) for level in _series(tiff).levels]
    levels = [found[0]]
    for planes in found[1:]:
        if _follows(planes, levels[-1], first=levels[0]):
            levels.append(planes)
    for planes in levels:
        for page in planes:
            _check_page(page, size=size)
    return levels


def _series(tiff: Any) -> Any:
    """The largest image of the file that is not named as a label or an overview."""
    named = [series for series in tiff.series if not _NOT_TISSUE.search(series.name or "")]
    if not tiff.series:
        raise SlideError(decoding.NO_SLIDE)
    if not named:
        raise SlideError("holds only a label or an overview, no slide")
    return max(named, key=lambda series: int(np.prod([int(n) for n in series.shape[-3:]])))


def _planes(level: Any) -> list[Any]:
    axes = dict(zip(level.axes, level.shape, strict=True))
    others = {axis: n for axis, n in axes.items() if axis not in "YXSC" or (axis in "SC" and n not in (1, 3, 4))}
    colours = int(axes.get("C", 1))
    pages = [page for page in level.pages if page is not None]
    if others or not {"Y", "X"} <= axes.keys() or (colours > 1 and len(pages) not in (1, colours)):
        raise SlideError(f"is a stack of axes {level.axes} {level.shape}, not a grey or RGB image")
    if len(pages) == colours > 1 or pages[0].samplesperpixel in (1, 2, 3, 4):
        return pages if len(pages) == colours else pages[:1]
    raise SlideError(f"has {pages[0].samplesperpixel} samples a pixel, not grey or RGB")


def _follows(planes: list[Any], above: list[Any], *, first: list[Any]) -> bool:
    """Whether a level is a reduction of the whole image."""
    width, height = planes[0].imagewidth, planes[0].imagelength
    if not (0 < width < above[0].imagewidth and 0 < height < above[0].imagelength and len(planes) == len(first)):
        return False
    across, down = first[0].imagewidth / width, first[0].imagelength / height
    return abs(across / down - 1) < _ASPECT_TOLERANCE + 1 / min(width, height)


def _check_page(page: Any, *, size: int) -> None:
    """Raise ``SlideError`` where a page's pixels cannot be read, or not in bounded memory."""
    keyframe = page.keyframe
    if keyframe.dtype not in (np.uint8, np.uint16, np.bool_):
        raise SlideError(f"has pixels of type {keyframe.dtype}; convert it to 8-bit RGB")
    decoding.check_size((keyframe.imagewidth, keyframe.imagelength), stored=None)
    ends = (int(start) + int(n) for start, n in zip(page.dataoffsets, page.databytecounts, strict=True) if n)
    end = max(ends, default=0)
    if end > size:
        raise SlideError(f"cannot be read: it is cut short (its pixels end at byte {end}, the file at {size})")
    if page.is_memmappable:
        return
    if int(keyframe.compression) not in _OF_KNOWN_LENGTH | _OF_OWN_SIZE:
        raise SlideError(f"is compressed in a way that is not read ({keyframe.compression!s}); convert it")
    (rows, columns), (high, wide) = _grid(keyframe)
    pieces = rows * columns * (keyframe.samplesperpixel if keyframe.planarconfig == 2 else 1)
    if high * wide > decoding.MAX_PIECE_PIXELS:
        raise SlideError(decoding.too_large(high * wide))
    if len(page.dataoffsets) < pieces:
        raise SlideError(f"cannot be read: it has {len(page.dataoffsets)} of its {pieces} tiles or strips")


def _grid(keyframe: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of tiles or strips, and the height and width of one."""
    if keyframe.is_tiled:
        high, wide = int(keyframe.tilelength), int(keyframe.tilewidth)
    else:
        high, wide = min(int(keyframe.rowsperstrip), keyframe.imagelength), keyframe.imagewidth
    if min(high, wide) < 1:
        raise SlideError(f"has tiles or strips of {wide} x {high} px")
    return (math.ceil(keyframe.imagelength / high), math.ceil(keyframe.imagewidth / wide)), (high, wide)


def _mapped(page: Any, *, path: Path) -> np.ndarray:
    """Uncompressed samples on disk, (h, w, samples)."""
    samples, planar = page.samplesperpixel, page.planarconfig == 2 and page.samplesperpixel > 1
    size = (page.imagelength, page.imagewidth)
    dtype = page.dtype.newbyteorder(page.parent.byteorder)
    shape = (samples, *size) if planar else (*size, samples)
    mapped = np.memmap(path, dtype=dtype, mode="r", offset=page.dataoffsets[0], shape=shape)
    return np.moveaxis(mapped, 0, -1) if planar else mapped


def _decoded(page: Any, *, tiff: Any, index: int) -> np.ndarray:
    keyframe, (_, (high, wide)) = page.keyframe, _grid(page.keyframe)
    samples = 1 if keyframe.planarconfig == 2 else keyframe.samplesperpixel
    count = int(page.databytecounts[index])
    if count == 0:
        return np.full((high, wide, samples), np.iinfo(keyframe.dtype).max, keyframe.dtype)
    tiff.filehandle.seek(int(page.dataoffsets[index]))
    data = tiff.filehandle.read(count)
    if int(keyframe.compression) in _OF_OWN_SIZE:
        _check_piece(data, high=high, wide=wide)
    tables = {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
    pixels, _, _ = keyframe.decode(data, index, **(tables if int(keyframe.compression) == _JPEG else {}))
    return np.asarray(pixels[0])


def _check_piece(data: bytes, *, high: int, wide: int) -> None:
    """A compressed image says its own size, and a decoder would make room for that."""
    with Image.open(BytesIO(data), formats=("JPEG", "JPEG2000", "WEBP")) as image:
        if image.width > wide or image.height > high:
            raise SlideError(f"cannot be read: a tile of {wide} x {high} px says that it is {image.size}")


def _as_rgb(samples: np.ndarray, *, page: Any) -> Image.Image:
    """Samples (h, w, 1 to 4) as an RGB image on white; of 16 bits the upper 8 count."""
    keyframe = page.keyframe
    kind = int(keyframe.photometric)
    if kind == _PALETTE:
        samples = keyframe.colormap[:, samples[..., 0]].transpose(1, 2, 0)
    if samples.dtype != np.uint8:
        samples = samples.astype(np.uint8) * np.uint8(255) if samples.dtype == np.bool_ else samples >> 8
    samples = np.ascontiguousarray(samples, dtype=np.uint8)
    if kind == _WHITE_IS_ZERO:
        samples = 255 - samples
    if kind == _CMYK or (kind == _YCBCR and int(keyframe.compression) in _OF_KNOWN_LENGTH):
        mode = "CMYK" if kind == _CMYK else "YCbCr"
        return Image.frombytes(mode, (samples.shape[1], samples.shape[0]), samples.tobytes()).convert("RGB")
    alpha = samples.shape[2] in (2, 4) and bool(_ALPHA & {int(extra) for extra in keyframe.extrasamples})
    if samples.shape[2] in (2, 4) and not alpha:
        samples = np.ascontiguousarray(samples[..., :-1])
    image = Image.fromarray(samples.squeeze(-1) if samples.shape[2] == 1 else samples)
    return on_white(image.convert("RGBA")) if alpha else image.convert("RGB")
