"""The slides of a run, to be looked at: what is known of each, its tiles from its file, its thumbnail.

A slide is asked for by its id, which is looked up in the run's table; paths come from that table alone.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pandas as pd
from PIL import Image

from histoloom.config import PRIVATE
from histoloom.run.directory import file_digest, read_json
from histoloom.slides.entries import OK, SlideError, one_line
from histoloom.slides.inventory.pseudonyms import real_file
from histoloom.slides.readers.open import Slide
from histoloom.slides.readers.open_slides import OpenSlides
from histoloom.slides.readers.zoom import MOST_PIXELS, Tile, Zoom, pixels_needed, tile_of_picture, tile_pixels

_QUALITY = 85


class NoSlide(LookupError):
    """The run has no such slide; the message is one line."""


@dataclass(frozen=True)
class SlideAbout:
    """What a run knows of a slide.

    ``width`` and ``height`` are level-0 px (0 where unknown), ``mpp`` um/px there (None where unknown); ``status`` is
    ``ok`` or why the slide was left out; ``stored`` is its file as the run keeps it, by a pseudonym where private.
    """

    slide_id: str
    slide: str
    patient: str
    split: str
    patches: int
    width: int
    height: int
    mpp: float | None
    status: str
    stored: str

    @property
    def private(self) -> bool:
        """Whether its file must not be named."""
        return self.stored.startswith(PRIVATE)

    @property
    def used(self) -> bool:
        """Whether patches were taken from it."""
        return self.status == OK

    @property
    def zoom(self) -> Zoom | None:
        """Its tiles; None where its size is unknown."""
        return Zoom(self.width, self.height) if self.width > 0 and self.height > 0 else None


class RunSlides:
    """The slides in the folder of a published stage ``patches``. Threads may ask at once."""

    def __init__(self, folder: Path, *, open_slides: OpenSlides | None = None) -> None:
        self.folder = folder
        self._open_slides = open_slides or OpenSlides()
        self._files: dict[str, Path] = {}
        self._digests: dict[tuple[Path, int, int], str] = {}
        self._lock = threading.Lock()

    @cached_property
    def about(self) -> Mapping[str, SlideAbout]:
        """Every slide that was found, by its id, in the table's order."""
        table = pd.read_parquet(self.folder / "slides.parquet")
        return {row["slide_id"]: _about(row) for row in table.to_dict("records")}

    def slide(self, slide_id: str) -> SlideAbout:
        """A slide by its id; raises ``NoSlide``."""
        if slide_id not in self.about:
            raise NoSlide("this run has no such slide; go back to the list of slides")
        return self.about[slide_id]

    def identity(self, slide_id: str) -> str:
        """A digest that changes with the slide's file. Raises ``NoSlide``, or ``SlideError`` where there is no file."""
        path = self._file(self.slide(slide_id))
        try:
            seen = path.stat()
            key = (path, seen.st_size, seen.st_mtime_ns)
            if key not in self._digests:
                self._digests[key] = file_digest(path)
        except OSError as error:
            raise SlideError("the file does not exist") from error
        return self._digests[key]

    def tile(self, slide_id: str, *, level: int, column: int, row: int) -> bytes:
        """A tile of a slide (``histoloom.slides.readers.zoom``) as a JPEG.

        Raises ``NoSlide``, ``NoTile``, or ``SlideError`` where the file is gone, damaged, or another slide.
        """
        about = self.slide(slide_id)
        tile = self._zoom(about).tile(level, column=column, row=row)
        with self._open_slides.use(self._file(about)) as slide:
            _check_same(slide, about)
            pixels = self._pixels(slide, tile, about=about)
        return jpeg(pixels)

    def trouble(self, slide_id: str) -> str:
        """Why the slide's tiles cannot be shown, and what to do; empty where they can. Raises ``NoSlide``."""
        about = self.slide(slide_id)
        if about.zoom is None:
            return f"This slide was left out of the run: {about.status}"
        try:
            with self._open_slides.use(self._file(about)) as slide:
                _check_same(slide, about)
        except SlideError as error:
            return self.told(error, about=about)
        return ""

    def told(self, error: SlideError, *, about: SlideAbout) -> str:
        """One line for the reader about a slide that cannot be shown, without its file's name where that is private."""
        what = "Its file" if about.private else one_line(about.stored)
        reason = error.reason if about.private else str(error)
        return f"{what}: {reason}. The thumbnail is shown instead; put the slide back where it was and reload."

    def thumbnail(self, slide_id: str) -> Path | None:
        """The stage's picture of the slide, at most 1024 px wide or high; None where there is none."""
        about = self.slide(slide_id)
        path = self.folder / "thumbnails" / f"{about.slide_id}.jpg"
        return path if path.is_file() else None

    def found(self, text: str) -> list[SlideAbout]:
        """The slides with ``text`` in their id, slide, patient or split, in any case; those left out come last."""
        wanted = text.casefold().strip()
        shown = [
            about
            for about in self.about.values()
            if any(wanted in said.casefold() for said in (about.slide_id, about.slide, about.patient, about.split))
        ]
        return sorted(shown, key=lambda about: not about.used)

    def close(self) -> None:
        """Let go of every file."""
        self._open_slides.close()

    def _pixels(self, slide: Slide, tile: Tile, *, about: SlideAbout) -> np.ndarray:
        """From the slide; from its thumbnail where the file has no level that is coarse enough."""
        if pixels_needed(slide, tile) > MOST_PIXELS:
            thumbnail = self.thumbnail(about.slide_id)
            if thumbnail is not None:
                with Image.open(thumbnail) as picture:
                    shown = np.asarray(picture.convert("RGB"))
                return tile_of_picture(shown, tile, dimensions=slide.dimensions)
        return tile_pixels(slide, tile)

    def _zoom(self, about: SlideAbout) -> Zoom:
        if about.zoom is None:
            raise SlideError(f"it was left out of this run ({about.status})")
        return about.zoom

    def _file(self, about: SlideAbout) -> Path:
        with self._lock:
            if about.slide_id not in self._files:
                self._files[about.slide_id] = real_file(about.stored)
            return self._files[about.slide_id]


def jpeg(pixels: np.ndarray) -> bytes:
    """RGB uint8 (h, w, 3) as a JPEG with its colours at full resolution."""
    return bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels), level=_QUALITY, subsampling="444"))


def jpeg_settings() -> str:
    """What tells a tile from one that another version of this program encoded in another way."""
    return f"jpeg {_QUALITY} 444"


def drawn_map(report: Path, *, slide_id: str, k: int, clusters: str) -> Path | None:
    """The tissue map of a slide of the run that the report drew; None unless it is of ``k`` and of these ``clusters``.

    ``clusters`` is the fingerprint of the clustering.
    """
    path = report / "maps" / f"{slide_id}.png"
    said = path.with_suffix(".json")
    about = read_json(said) if said.is_file() and path.is_file() else {}
    return path if (about.get("k"), about.get("clusters")) == (k, clusters) else None


def _check_same(slide: Slide, about: SlideAbout) -> None:
    if slide.dimensions != (about.width, about.height):
        raise SlideError("is not the slide that this run was made from, its size is another")


def _about(row: Mapping[Any, Any]) -> SlideAbout:
    mpp = _number(row["source_mpp"])
    return SlideAbout(
        slide_id=str(row["slide_id"]),
        slide=str(row["slide"]),
        patient=str(row["patient"]),
        split="" if pd.isna(row["split"]) else str(row["split"]),
        patches=int(_number(row["patches"]) or 0),
        width=int(_number(row["width"]) or 0),
        height=int(_number(row["height"]) or 0),
        mpp=mpp if mpp and mpp > 0 else None,
        status=str(row["status"]),
        stored=str(row["file"]),
    )


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
