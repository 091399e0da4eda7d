"""What the patches stage does with one slide: its thumbnail, and its file of patches.

These functions run in worker processes; each writes one file, whole or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from histoloom.slides.entries import SlideEntry, SlideError
from histoloom.slides.normalisation import Recolouring
from histoloom.slides.readers import Slide, open_slide
from histoloom.slides.tissue import tissue_mask
from histoloom.store import replacing

THUMBNAIL_SIDE = 1024
_JPEG_QUALITY = 90
_STRIP = 16  # patches side by side


@dataclass(frozen=True)
class Survey:
    """Look at ``entry`` and put its thumbnail at ``thumbnail``."""

    entry: SlideEntry
    thumbnail: Path


@dataclass(frozen=True)
class Surveyed:
    """A slide's tissue, bool (h, w) of its thumbnail, or the reason why it cannot be read."""

    tissue: np.ndarray | None
    reason: str = ""


@dataclass(frozen=True)
class Extraction:
    """Take the patches at level-0 ``x``, ``y`` (n,) of side ``extent`` px, ``size`` px each, into ``target`` (.npy).

    ``recolour`` normalises their stain.
    """

    entry: SlideEntry
    x: np.ndarray
    y: np.ndarray
    extent: float
    size: int
    target: Path
    recolour: Recolouring | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the array in ``target``."""
        return len(self.x), self.size, self.size, 3


def survey(job: Survey) -> Surveyed:
    """A slide's tissue, from its thumbnail as it was written, so that a resumed run sees the same."""
    if not job.thumbnail.is_file():
        try:
            with open_slide(job.entry) as slide:
                pixels = slide.thumbnail(THUMBNAIL_SIDE)
        except SlideError as error:
            return Surveyed(None, job.entry.why(error))
        with replacing(job.thumbnail) as temporary:
            Image.fromarray(pixels).save(temporary, format="JPEG", quality=_JPEG_QUALITY)
    with Image.open(job.thumbnail) as image:
        return Surveyed(tissue_mask(np.asarray(image.convert("RGB"))))


def extract(job: Extraction) -> str | None:
    """Write a slide's patches, unless that is done; returns the reason where the slide cannot be read."""
    if job.target.is_file():
        return None
    try:
        with open_slide(job.entry) as slide, replacing(job.target) as temporary:
            _write(job, slide=slide, path=temporary)
    except SlideError as error:
        return job.entry.why(error)
    return None


def _write(job: Extraction, *, slide: Slide, path: Path) -> None:
    """Row by row with plain writes: a full disk under a memory map would kill the process instead of raising."""
    header = {"descr": "|u1", "fortran_order": False, "shape": job.shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start, length = file.tell(), job.size * job.size * 3
        for row in _in_reading_order(job):
            pixels = slide.read(int(job.x[row]), int(job.y[row]), extent=job.extent, size=job.size)
            pixels = pixels if job.recolour is None else job.recolour(pixels)
            file.seek(start + int(row) * length)
            file.write(pixels.tobytes())


def _in_reading_order(job: Extraction) -> np.ndarray:
    """Rows strip by strip and there band by band, so that neighbours find the slide's tiles still decoded.

    A strip is so narrow that what two of its bands touch fits the cache of decoded tiles, however wide the slide.
    """
    side = max(1, int(job.extent))
    return np.lexsort((job.x, job.y // side, job.x // (_STRIP * side)))
