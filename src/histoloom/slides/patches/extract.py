"""What the patches stage does with one slide: its thumbnail, its file of patches, and a picture of both.

These functions run in worker processes; each writes one file, whole or not at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from histoloom.run.directory import read_json, replacing, write_json
from histoloom.slides.entries import SlideEntry, SlideError
from histoloom.slides.patches.filters import MIN_TISSUE_FOR_FOCUS, REASONS, Filters
from histoloom.slides.patches.sampling import CandidatePatches, Positions, SlideGeometry
from histoloom.slides.patches.surroundings import fields_of, image_side, read_fields
from histoloom.slides.readers.base import Slide
from histoloom.slides.readers.open import open_slide
from histoloom.slides.regions import Regions, read_regions
from histoloom.slides.stain.normalise import StainNormaliser
from histoloom.slides.tissue.kind import not_he
from histoloom.slides.tissue.mask import PackedMask, segment_thumbnail

THUMBNAIL_SIDE = 1024
TISSUE_COLOUR = (0, 158, 115)
SPLIT_COLOURS = {"train": (0, 84, 190), "holdout": (213, 94, 0)}
"""On overviews: green for the outline of tissue; blue patches are for training, orange ones are held out."""

_JPEG_QUALITY = 90
_STRIP = 16  # patches side by side
_OUTLINE = 2  # px of the thumbnail
_MIN_FRAME = 3  # px of the thumbnail; a patch smaller than that would vanish


# --- thumbnail and tissue ---


@dataclass(frozen=True)
class ThumbnailJob:
    """Write the thumbnail of ``entry`` to ``thumbnail``, and find tissue and pen on it."""

    entry: SlideEntry
    thumbnail: Path


@dataclass(frozen=True)
class ThumbnailResult:
    """A slide's tissue, pen and regions, or the ``reason`` why it cannot be read; ``empty``: it has no tissue.

    ``not_he`` says why it cannot be haematoxylin and eosin; it is empty where it can.
    """

    tissue: PackedMask | None
    pen: PackedMask | None = None
    empty: bool = False
    reason: str = ""
    not_he: str = ""
    regions: Regions | None = None


def make_thumbnail(job: ThumbnailJob) -> ThumbnailResult:
    """A slide's tissue, from its thumbnail as it was written, so that a resumed run sees the same."""
    entry = job.entry
    regions = None
    try:
        if not job.thumbnail.is_file():
            with open_slide(entry) as slide:
                pixels = slide.thumbnail(THUMBNAIL_SIDE)
            with replacing(job.thumbnail) as temporary:
                Image.fromarray(pixels).save(temporary, format="JPEG", quality=_JPEG_QUALITY)
        with Image.open(job.thumbnail) as image:
            thumbnail = np.asarray(image.convert("RGB"))
        masks = segment_thumbnail(thumbnail)
        if entry.regions is not None:
            with open_slide(entry) as slide:
                dimensions, origin = slide.dimensions, slide.origin
            regions = read_regions(
                entry.regions, dimensions=dimensions, origin=origin, shape_hw=masks.tissue_hw.shape[:2]
            )
    except SlideError as error:
        return ThumbnailResult(None, reason=entry.public_reason(error))
    return ThumbnailResult(
        PackedMask.of(masks.tissue_hw),
        PackedMask.of(masks.pen_hw),
        empty=not masks.tissue_hw.any(),
        not_he=not_he(thumbnail),
        regions=regions,
    )


# --- patches ---


@dataclass
class AcceptedPatches:
    """``rows`` of the candidates, in the order of the file of patches, and how many were ``rejected`` by reason."""

    rows: list[int]
    rejected: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))

    @staticmethod
    def load(path: Path) -> AcceptedPatches:
        """Read what ``save`` wrote."""
        values = read_json(path)
        return AcceptedPatches(list(values["rows"]), dict(values["rejected"]))

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"rows": self.rows, "rejected": self.rejected})


def accept(
    candidates: CandidatePatches,
    *,
    filters: Filters,
    read: Callable[[int], np.ndarray],
    keep: Callable[[int, np.ndarray], None],
    reading_order: Callable[[np.ndarray], np.ndarray],
) -> AcceptedPatches:
    """Accept the first candidates, in their order, that no filter rejects.

    A rejected patch is replaced by the next candidate of its kind (tissue or background), so that the number and the
    share of background stay as far as the candidates reach. Which patches come out depends on the candidates and on
    their pixels alone. Fills the slots 0, 1, ... and calls ``keep(slot, patch)`` for each; slots
    that stay empty are -1 in ``rows``.

    ``read(row)`` gives a candidate's patch; ``reading_order`` sorts rows so that reading them is fast. A candidate
    under pen is rejected without being read.
    """
    first = candidates.first()
    tissue, pen, background = candidates.positions.tissue, candidates.positions.pen, candidates.background
    accepted = AcceptedPatches([-1] * len(first))
    spare = {
        kind: deque((np.flatnonzero(background[len(first) :] == kind) + len(first)).tolist()) for kind in (False, True)
    }
    slots = {int(row): slot for slot, row in enumerate(first)}  # of the rows that are to be tried
    while slots:
        replacements: dict[int, int] = {}
        for row in reading_order(np.array(sorted(slots))).tolist():
            rejection: str | None = None
            if filters.pen is not None and pen[row] > filters.pen:
                rejection = "pen"
            else:
                patch = read(row)
                if tissue[row] >= MIN_TISSUE_FOR_FOCUS:
                    rejection = filters.rejection(patch)
            if rejection is None:
                accepted.rows[slots[row]] = row
                keep(slots[row], patch)
                continue
            accepted.rejected[rejection] += 1
            queue = spare[bool(background[row])] or spare[False]
            if queue:
                replacements[queue.popleft()] = slots[row]
        slots = replacements
    return accepted


def compacting_moves(rows: list[int]) -> list[tuple[int, int]]:
    """Which slots' patches to move where, (from, to), so that the filled slots come first."""
    full = [slot for slot, row in enumerate(rows) if row >= 0]
    empty = [slot for slot, row in enumerate(rows) if row < 0 and slot < len(full)]
    return list(zip(reversed(full[len(full) - len(empty) :]), empty, strict=True)) if empty else []


@dataclass(frozen=True)
class ExtractionJob:
    """Take patches of level-0 side ``extent`` px among the ``candidates``, ``size`` px each, into ``target``.

    ``candidates`` is the file of ``CandidatePatches``, ``target`` a .npy file; ``checkpoint`` a .json that says which
    candidates it holds, where filters are active. ``normaliser`` changes the stain of accepted patches; filters measure
    the slide's own pixels. ``surroundings``: the .npy file of the fields about the accepted patches, in their order;
    None: they are not wanted.
    """

    entry: SlideEntry
    candidates: Path
    extent: float
    size: int
    target: Path
    checkpoint: Path
    filters: Filters
    normaliser: StainNormaliser | None = None
    surroundings: Path | None = None

    def done(self, candidates: CandidatePatches) -> AcceptedPatches | None:
        """The patches that ``target`` holds, or None where it has to be written."""
        if not self.target.is_file():
            return None
        if not self.filters.active:
            return AcceptedPatches(candidates.first().tolist())
        return AcceptedPatches.load(self.checkpoint) if self.checkpoint.is_file() else None


@dataclass(frozen=True)
class ExtractionResult:
    """The accepted patches, in the file's order, or the ``reason`` why the slide is left out.

    ``rejected``: how many candidates were rejected, by reason.
    """

    positions: Positions | None
    rejected: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    reason: str = ""


def extract_patches(job: ExtractionJob) -> ExtractionResult:
    """Write a slide's patches, unless that is done; a slide that gives none, or cannot be read, is left out."""
    candidates = CandidatePatches.load(job.candidates)
    accepted = job.done(candidates)
    around = job.surroundings
    try:
        if accepted is None or (around is not None and not around.is_file()):
            with open_slide(job.entry) as slide:
                if accepted is None:
                    with replacing(job.target) as temporary:
                        accepted = _write_patches(job, candidates=candidates, slide=slide, path=temporary)
                        if job.filters.active:
                            accepted.save(job.checkpoint)
                if around is not None:
                    positions = candidates.positions.take(np.array(accepted.rows))
                    with replacing(around) as temporary:
                        _write_surroundings(job, positions=positions, slide=slide, path=temporary)
    except SlideError as error:
        return ExtractionResult(None, reason=job.entry.public_reason(error))
    return ExtractionResult(candidates.positions.take(np.array(accepted.rows, np.int64)), accepted.rejected)


def _write_patches(job: ExtractionJob, *, candidates: CandidatePatches, slide: Slide, path: Path) -> AcceptedPatches:
    """Patch by patch with plain writes: a full disk under a memory map would kill the process instead of raising."""
    length = job.size * job.size * 3
    positions = candidates.positions

    def read(row: int) -> np.ndarray:
        return slide.read(int(positions.x[row]), int(positions.y[row]), extent=job.extent, size=job.size)

    def reading_order(rows: np.ndarray) -> np.ndarray:
        return np.asarray(rows[_reading_order(positions.x[rows], positions.y[rows], side=job.extent)])

    with path.open("wb+") as file:
        start = _write_npy_header(file, n=candidates.wanted, size=job.size)

        def keep(slot: int, patch: np.ndarray) -> None:
            file.seek(start + slot * length)
            file.write((patch if job.normaliser is None else job.normaliser(patch)).tobytes())

        accepted = accept(candidates, filters=job.filters, read=read, keep=keep, reading_order=reading_order)

        # Where slots stayed empty, the last patches are moved there and the file is cut.
        for source, target in compacting_moves(accepted.rows):
            file.seek(start + source * length)
            patch = file.read(length)
            file.seek(start + target * length)
            file.write(patch)
            accepted.rows[target], accepted.rows[source] = accepted.rows[source], -1
        accepted.rows = [row for row in accepted.rows if row >= 0]
        if not accepted.rows:
            counts = ", ".join(f"{reason} {n}" for reason, n in accepted.rejected.items() if n)
            raise SlideError(f"every patch tried was rejected ({counts}); loosen patches.filters")
        end = _write_npy_header(file, n=len(accepted.rows), size=job.size)
        assert end == start, "the header keeps room for any number"
        file.truncate(start + len(accepted.rows) * length)
    return accepted


def _write_surroundings(job: ExtractionJob, *, positions: Positions, slide: Slide, path: Path) -> None:
    """The fields about the patches at these positions, in their order; one in memory."""
    side = image_side(job.size)
    fields_N3 = fields_of(positions.x, positions.y, extent=job.extent, dimensions=slide.dimensions)
    order = _reading_order(fields_N3[:, 0], fields_N3[:, 1], side=float(fields_N3[0, 2]))
    with path.open("wb+") as file:
        start = _write_npy_header(file, n=len(positions), size=side)
        for slot, image in zip(order.tolist(), read_fields(slide, fields_N3[order], side=side), strict=True):
            file.seek(start + slot * image.nbytes)
            file.write((image if job.normaliser is None else job.normaliser(image)).tobytes())


def _reading_order(x: np.ndarray, y: np.ndarray, *, side: float) -> np.ndarray:
    """The order in which boxes of this side are read fast.

    Strip by strip and there band by band, so that neighbours find the slide's tiles still decoded. A strip is so narrow
    that the tiles of two of its bands fit the cache, however wide the slide.
    """
    whole = max(1, int(side))
    return np.lexsort((x, y // whole, x // (_STRIP * whole)))


def _write_npy_header(file: BinaryIO, *, n: int, size: int) -> int:
    """The header of ``n`` patches; returns where the first of them starts."""
    file.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": (n, size, size, 3)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


# --- overview ---


@dataclass(frozen=True)
class OverviewJob:
    """Draw the tissue's outline and the patches of a slide over its thumbnail, into ``target``."""

    thumbnail: Path
    target: Path
    geometry: SlideGeometry
    positions: Positions
    split: str


def write_overview(job: OverviewJob) -> None:
    """Write a slide's overview as JPEG, unless that is done."""
    if job.target.is_file():
        return
    with Image.open(job.thumbnail) as image:
        picture_hw3 = np.asarray(image.convert("RGB"))
    tissue_hw = job.geometry.tissue.unpacked()
    inner_hw = ndimage.binary_erosion(tissue_hw, iterations=_OUTLINE, border_value=1)
    picture_hw3 = np.where((tissue_hw & ~inner_hw)[..., None], np.array(TISSUE_COLOUR, np.uint8), picture_hw3)
    picture = Image.fromarray(picture_hw3)

    # Frames of one pixel: patches that overlap stay apart.
    draw = ImageDraw.Draw(picture)
    across, down = picture.width / job.geometry.width, picture.height / job.geometry.height
    width = max(_MIN_FRAME, round(job.geometry.extent * across)) - 1
    height = max(_MIN_FRAME, round(job.geometry.extent * down)) - 1
    for x, y in zip(job.positions.x, job.positions.y, strict=True):
        left, top = round(x * across), round(y * down)
        draw.rectangle((left, top, left + width, top + height), outline=SPLIT_COLOURS[job.split])
    with replacing(job.target) as temporary:
        picture.save(temporary, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
