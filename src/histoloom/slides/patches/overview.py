"""A picture of what was taken from a slide: its thumbnail with the outline of its tissue and its patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from histoloom.run.directory import replacing
from histoloom.slides.entries import SlideEntry
from histoloom.slides.patches.sampling import Field, Positions

TISSUE = (0, 158, 115)
COLOURS = {"train": (0, 84, 190), "holdout": (213, 94, 0)}
"""Green for the outline of tissue; blue patches are for training, orange ones are held out."""

_JPEG_QUALITY = 90
_OUTLINE = 2  # px of the thumbnail
_LEAST_SIDE = 3  # px of the thumbnail; a patch smaller than that would vanish


@dataclass(frozen=True)
class Overview:
    """Draw patches at level-0 ``x``, ``y`` (n,) of side ``extent`` px of a slide of ``dimensions`` into ``target``.

    ``tissue`` is bool (h, w), of the size of the picture at ``thumbnail``.
    """

    thumbnail: Path
    target: Path
    tissue: np.ndarray
    x: np.ndarray
    y: np.ndarray
    extent: float
    dimensions: tuple[int, int]
    split: str


def overviews(
    entries: Sequence[SlideEntry],
    *,
    fields: Mapping[str, Field],
    positions: Mapping[str, Positions],
    splits: Mapping[str, str],
    out: Path,
) -> list[Overview]:
    """An overview for each usable slide, of the pictures in the stage's folder ``out``."""
    return [
        Overview(
            thumbnail=out / "thumbnails" / f"{entry.slide_id}.jpg",
            target=out / "overviews" / f"{entry.slide_id}.jpg",
            tissue=fields[entry.slide_id].tissue,
            x=positions[entry.slide_id].x,
            y=positions[entry.slide_id].y,
            extent=fields[entry.slide_id].extent,
            dimensions=(entry.width, entry.height),
            split=splits[entry.slide_id],
        )
        for entry in entries
        if entry.usable
    ]


def write_overview(job: Overview) -> None:
    """Write a slide's overview as JPEG, unless that is done."""
    if job.target.is_file():
        return
    with Image.open(job.thumbnail) as image:
        picture = _outlined(np.asarray(image.convert("RGB")), tissue_hw=job.tissue)
    drawn = Image.fromarray(picture)
    _add_patches(drawn, job=job)
    with replacing(job.target) as temporary:
        drawn.save(temporary, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)


def _outlined(picture_hw3: np.ndarray, *, tissue_hw: np.ndarray) -> np.ndarray:
    inner_hw = ndimage.binary_erosion(tissue_hw, iterations=_OUTLINE, border_value=1)
    return np.where((tissue_hw & ~inner_hw)[..., None], np.array(TISSUE, np.uint8), picture_hw3)


def _add_patches(picture: Image.Image, *, job: Overview) -> None:
    """One-pixel frames: patches that overlap stay apart."""
    draw = ImageDraw.Draw(picture)
    across, down = picture.width / job.dimensions[0], picture.height / job.dimensions[1]
    width = max(_LEAST_SIDE, round(job.extent * across)) - 1
    height = max(_LEAST_SIDE, round(job.extent * down)) - 1
    for x, y in zip(job.x, job.y, strict=True):
        left, top = round(x * across), round(y * down)
        draw.rectangle((left, top, left + width, top + height), outline=COLOURS[job.split])
