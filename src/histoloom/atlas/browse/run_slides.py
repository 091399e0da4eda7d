"""The slides of a run for the viewer: their properties, tiles read from their files, thumbnails and tissue maps.

A slide is found by its id in the run's table. File paths come from that table alone, never from a request.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from histoloom.atlas.maps.overlay import MapRecord
from histoloom.config import PRIVATE
from histoloom.run.directory import file_digest
from histoloom.slides.entries import SlideError, one_line
from histoloom.slides.inventory.pseudonyms import real_file
from histoloom.slides.patch_set import SlideRow
from histoloom.slides.readers.base import Slide
from histoloom.slides.readers.viewer import (
    MAX_TILE_PIXELS,
    SlideCache,
    Zoom,
    pixels_needed,
    tile_of_picture,
    tile_pixels,
)

_QUALITY = 85


class NoSlide(LookupError):
    """The run has no such slide; the message is one line."""


class SlideInfo(SlideRow):
    """A row of ``slides.parquet``, as the viewer shows it."""

    @property
    def file_name(self) -> str:
        """The last part of its path."""
        return Path(self.file).name

    @property
    def private(self) -> bool:
        """Whether its file must not be named."""
        return self.file.startswith(PRIVATE)

    @property
    def zoom(self) -> Zoom | None:
        """Its tiles; None where its size is unknown."""
        return Zoom(self.width, self.height) if self.width > 0 and self.height > 0 else None


class RunSlides:
    """The slides in the folder of a published stage ``patches``. Threads may share it.

    ``paths``: where slides that have moved are looked for.
    """

    def __init__(self, folder: Path, *, paths: Sequence[str] = (), slide_cache: SlideCache | None = None) -> None:
        self.folder = folder
        self._paths = tuple(paths)
        self._slide_cache = slide_cache or SlideCache()
        self._files: dict[str, Path] = {}
        self._digests: dict[tuple[Path, int, int], str] = {}
        self._lock = threading.Lock()

    @cached_property
    def by_id(self) -> Mapping[str, SlideInfo]:
        """Every slide of the table, by its id, in the table's order."""
        return {slide.slide_id: slide for slide in SlideInfo.load(self.folder)}

    def slide(self, slide_id: str) -> SlideInfo:
        """A slide by its id; raises ``NoSlide``."""
        if slide_id not in self.by_id:
            raise NoSlide("this run has no such slide; go back to the list of slides")
        return self.by_id[slide_id]

    def search(self, text: str) -> list[SlideInfo]:
        """The slides with ``text`` in their id, slide, patient or split, in any case; those left out come last."""
        wanted = text.casefold().strip()
        matches = [
            info
            for info in self.by_id.values()
            if any(wanted in value.casefold() for value in (info.slide_id, info.slide, info.patient, info.split))
        ]
        return sorted(matches, key=lambda info: not info.usable)

    def identity(self, slide_id: str) -> str:
        """A digest that changes with the slide's file. Raises ``NoSlide``, or ``SlideError`` where there is no file."""
        path = self._file(self.slide(slide_id))
        try:
            stat = path.stat()
            key = (path, stat.st_size, stat.st_mtime_ns)
            if key not in self._digests:
                self._digests[key] = file_digest(path)
        except OSError as error:
            raise SlideError("the file does not exist") from error
        return self._digests[key]

    def tile(self, slide_id: str, *, level: int, column: int, row: int) -> bytes:
        """A tile of a slide (``histoloom.slides.readers.viewer``) as a JPEG.

        Raises ``NoSlide``, ``NoTile``, or ``SlideError`` where the file is gone, damaged, or another slide.
        """
        info = self.slide(slide_id)
        if info.zoom is None:
            raise SlideError(f"it was left out of this run ({info.status})")
        tile = info.zoom.tile(level, column=column, row=row)
        with self._open(info) as slide:
            if pixels_needed(slide, tile) > MAX_TILE_PIXELS and (thumbnail := self.thumbnail(slide_id)) is not None:
                # The file has no level that is coarse enough
                with Image.open(thumbnail) as picture:
                    thumbnail_HW3 = np.asarray(picture.convert("RGB"))
                pixels = tile_of_picture(thumbnail_HW3, tile, dimensions=slide.dimensions)
            else:
                pixels = tile_pixels(slide, tile)
        return jpeg(pixels)

    def square(self, slide_id: str, *, x: float, y: float, extent: float, size: int) -> np.ndarray:
        """The level-0 square of side ``extent`` px at (x, y), uint8 (size, size, 3); white outside the slide.

        Raises ``NoSlide``, or ``SlideError`` where the file is gone, damaged, or another slide.
        """
        with self._open(self.slide(slide_id)) as slide:
            return slide.read(x, y, extent=extent, size=size)

    def problem(self, slide_id: str) -> str:
        """Why the slide's tiles cannot be shown, and what to do; empty where they can. Raises ``NoSlide``."""
        info = self.slide(slide_id)
        if info.zoom is None:
            return f"This slide was left out of the run: {info.status}"
        try:
            with self._open(info):
                return ""
        except SlideError as error:
            return self.explain(error, info=info)

    def explain(self, error: SlideError, *, info: SlideInfo) -> str:
        """One line about a slide that cannot be shown; it does not name a private file."""
        file = "Its file" if info.private else one_line(info.file)
        reason = error.reason if info.private else str(error)
        return f"{file}: {reason}. The thumbnail is shown instead; put the slide back where it was and reload."

    def thumbnail(self, slide_id: str) -> Path | None:
        """The stage's picture of the slide, at most 1024 px wide or high; None where there is none."""
        path = self.folder / "thumbnails" / f"{self.slide(slide_id).slide_id}.jpg"
        return path if path.is_file() else None

    def close(self) -> None:
        """Close every file."""
        self._slide_cache.close()

    @contextmanager
    def _open(self, info: SlideInfo) -> Iterator[Slide]:
        """The open slide; ``SlideError`` where its size is not that of the run's slide."""
        with self._slide_cache.use(self._file(info)) as slide:
            if slide.dimensions != (info.width, info.height):
                raise SlideError("is not the slide that this run was made from, its size is another")
            yield slide

    def _file(self, info: SlideInfo) -> Path:
        with self._lock:
            if info.slide_id not in self._files:
                self._files[info.slide_id] = real_file(info.file, paths=self._paths)
            return self._files[info.slide_id]


def jpeg(pixels: np.ndarray) -> bytes:
    """RGB uint8 (h, w, 3) as a JPEG with its colours at full resolution."""
    import imagecodecs  # only the atlas encodes tiles

    return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels), level=_QUALITY, subsampling="444"))


def jpeg_settings() -> str:
    """A text that changes with the encoding of tiles."""
    return f"jpeg {_QUALITY} 444"


def drawn_map(report: Path, *, slide_id: str, k: int, clusters: str) -> Path | None:
    """The report's tissue map of a slide; None unless it is of ``k`` and of these ``clusters`` (a fingerprint)."""
    path = report / "maps" / f"{slide_id}.png"
    record = MapRecord.load(path.with_suffix(".json"))
    matches = record is not None and path.is_file() and (record.k, record.clusters) == (k, clusters)
    return path if matches else None
