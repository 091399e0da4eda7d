"""What the patches stage does with one slide: its thumbnail, and its file of patches.

These functions run in worker processes; each writes one file, whole or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from histoloom.run.directory import read_json, replacing, write_json
from histoloom.slides.entries import SlideEntry, SlideError
from histoloom.slides.patches.filters import AcceptedPatches, Candidates, Filters, choose, moves
from histoloom.slides.readers.base import Slide
from histoloom.slides.readers.open import open_slide
from histoloom.slides.stain.normalise import Recolouring
from histoloom.slides.tissue.mask import examine

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
    """A slide's tissue and pen, bool (h, w) of its thumbnail, or the reason why it cannot be read."""

    tissue: np.ndarray | None
    reason: str = ""
    pen: np.ndarray | None = None


@dataclass(frozen=True)
class Extraction:
    """Take patches among those at level-0 ``x``, ``y`` (n,) of side ``extent`` px, ``size`` px each, into ``target``.

    ``target`` is a .npy file; ``notes`` a .json beside the stage's checkpoints, of what was taken where filters
    choose. ``recolour`` normalises the stain of what is kept; filters judge the slide's own pixels.
    """

    entry: SlideEntry
    x: np.ndarray
    y: np.ndarray
    extent: float
    size: int
    target: Path
    notes: Path
    candidates: Candidates
    filters: Filters
    recolour: Recolouring | None = None


@dataclass(frozen=True)
class Extracted:
    """What was ``taken``, in the rows' order, or the ``reason`` why the slide is left out."""

    taken: AcceptedPatches | None
    reason: str = ""


def survey(job: Survey) -> Surveyed:
    """A slide's tissue, from its thumbnail as it was written, so that a resumed run sees the same."""
    if not job.thumbnail.is_file():
        try:
            with open_slide(job.entry) as slide:
                pixels = slide.thumbnail(THUMBNAIL_SIDE)
        except SlideError as error:
            return Surveyed(None, job.entry.public_reason(error))
        with replacing(job.thumbnail) as temporary:
            Image.fromarray(pixels).save(temporary, format="JPEG", quality=_JPEG_QUALITY)
    with Image.open(job.thumbnail) as image:
        seen = examine(np.asarray(image.convert("RGB")))
    return Surveyed(seen.tissue_hw, pen=seen.pen_hw)


def extract(job: Extraction) -> Extracted:
    """Write a slide's patches, unless that is done; a slide that gives none, or cannot be read, is left out."""
    if job.target.is_file() and (done := _noted(job)) is not None:
        return Extracted(done)
    try:
        with open_slide(job.entry) as slide, replacing(job.target) as temporary:
            taken = _write(job, slide=slide, path=temporary)
            if job.filters.active:
                job.notes.parent.mkdir(parents=True, exist_ok=True)
                write_json(job.notes, {"rows": taken.rows, "rejected": taken.rejected})
    except SlideError as error:
        return Extracted(None, job.entry.public_reason(error))
    return Extracted(taken)


def _noted(job: Extraction) -> AcceptedPatches | None:
    """What a finished file holds; None where that is not known any more."""
    if not job.filters.active:
        return AcceptedPatches(job.candidates.first().tolist())
    if not job.notes.is_file():
        return None
    notes = read_json(job.notes)
    return AcceptedPatches(list(notes["rows"]), dict(notes["rejected"]))


def _write(job: Extraction, *, slide: Slide, path: Path) -> AcceptedPatches:
    """Patch by patch with plain writes: a full disk under a memory map would kill the process instead of raising."""
    length = job.size * job.size * 3
    with path.open("wb+") as file:
        start = _write_header(file, job=job, n=job.candidates.wanted)

        def keep(slot: int, patch: np.ndarray) -> None:
            file.seek(start + slot * length)
            file.write((patch if job.recolour is None else job.recolour(patch)).tobytes())

        def read(row: int) -> np.ndarray:
            return slide.read(int(job.x[row]), int(job.y[row]), extent=job.extent, size=job.size)

        taken = choose(
            job.candidates, filters=job.filters, read=read, keep=keep, in_order=lambda rows: _reading_order(job, rows)
        )
        for source, target in moves(taken.rows):
            file.seek(start + source * length)
            patch = file.read(length)
            file.seek(start + target * length)
            file.write(patch)
            taken.rows[target], taken.rows[source] = taken.rows[source], -1
        taken.rows = [row for row in taken.rows if row >= 0]
        if not taken.rows:
            raise SlideError(_all_rejected(taken))
        assert _write_header(file, job=job, n=len(taken.rows)) == start, "the header keeps room for any number"
        file.truncate(start + len(taken.rows) * length)
    return taken


def _write_header(file: BinaryIO, *, job: Extraction, n: int) -> int:
    """The header of ``n`` patches; returns where the first of them starts."""
    file.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": (n, job.size, job.size, 3)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def _all_rejected(taken: AcceptedPatches) -> str:
    counts = ", ".join(f"{reason} {n}" for reason, n in taken.rejected.items() if n)
    return f"every patch tried was rejected ({counts}); loosen patches.filters"


def _reading_order(job: Extraction, rows: np.ndarray) -> np.ndarray:
    """Rows strip by strip and there band by band, so that neighbours find the slide's tiles still decoded.

    A strip is so narrow that what two of its bands touch fits the cache of decoded tiles, however wide the slide.
    """
    side = max(1, int(job.extent))
    x, y = job.x[rows], job.y[rows]
    return np.asarray(rows[np.lexsort((x, y // side, x // (_STRIP * side)))])
