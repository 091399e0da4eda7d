"""Each slide's stain, estimated once from fields spread over its tissue, and kept in ``stain.json``.

Files that are fields of one slide share an estimate. An estimate depends on the slide alone, so that a slide that the
run has never seen is normalised as its own slides were.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from histoloom.config import PatchesConfig
from histoloom.errors import UserError
from histoloom.run.directory import read_json, write_json
from histoloom.slides.entries import SlideEntry, SlideError
from histoloom.slides.readers.base import Slide
from histoloom.slides.readers.open import open_slide
from histoloom.slides.stain.normalise import (
    REFERENCES,
    Method,
    Recolouring,
    Stain,
    estimate,
    from_json,
    glass_colour,
    to_json,
)
from histoloom.slides.tissue.mask import tissue_mask

FIELDS = 64
"""Places looked at on a slide."""

FIELD_SIDE, FIELD_MPP = 64, 1.0
"""Side of a field in px, and its um/px: fine enough to tell nuclei from what lies around them."""

_SPARSE = 4  # every so manieth pixel of a thumbnail tells the colour of glass
_THUMBNAIL_SIDE = 1024


@dataclass(frozen=True)
class Sample:
    """Where to look on the files of one slide: level-0 middles of fields (n, 2) for each of ``entries``."""

    method: Method
    entries: tuple[SlideEntry, ...]
    thumbnails: tuple[Path, ...]
    middles: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class SlideStains:
    """The stain of each slide of a run, by the slide's name; None where it could not be told."""

    method: Method
    reference: Stain
    slides: Mapping[str, Stain | None]

    @staticmethod
    def read(path: Path) -> SlideStains:
        """What ``write`` wrote."""
        values = read_json(path)
        method = values["method"]
        reference = from_json(method, values=values["reference"])
        assert reference is not None, "a reference is always known"
        slides = {name: from_json(method, values=stain) for name, stain in values["slides"].items()}
        return SlideStains(method, reference, slides)

    def write(self, path: Path) -> None:
        """Write ``stain.json``."""
        slides = {name: to_json(stain) for name, stain in self.slides.items()}
        write_json(path, {"method": self.method, "reference": to_json(self.reference), "slides": slides})

    def recolouring(self, stain: Stain | None) -> Recolouring | None:
        """What brings ``stain`` to the reference; None for a stain that could not be told, which is left as it is."""
        return None if stain is None else Recolouring(stain, self.reference)

    def of_slide(self, slide: Slide, *, name: str | None = None) -> Recolouring | None:
        """The recolouring of the run's slide ``name``, or else of an open one, looked at now (``SlideError``)."""
        if name is not None and name in self.slides:
            return self.recolouring(self.slides[name])
        thumbnail_HW3 = slide.thumbnail(_THUMBNAIL_SIDE)
        (middles_N2,) = spread([tissue_mask(thumbnail_HW3)], dimensions=[slide.dimensions])
        pixels_P3 = read_fields(slide, middles=middles_N2)
        return self.recolouring(estimate(self.method, pixels_P3=pixels_P3, glass=_glass([thumbnail_HW3])))


def samples(
    entries: Iterable[SlideEntry], *, tissue: Mapping[str, np.ndarray], thumbnails: Path, method: Method
) -> dict[str, Sample]:
    """A sample for each slide of the usable ``entries``; ``tissue`` are their masks, bool (h, w), by slide_id."""
    files: dict[str, list[SlideEntry]] = {}
    for entry in entries:
        if entry.usable:
            files.setdefault(entry.slide, []).append(entry)
    result = {}
    for name, group in files.items():
        masks = [tissue[entry.slide_id] for entry in group]
        middles = spread(masks, dimensions=[(entry.width, entry.height) for entry in group])
        used = [position for position, found in enumerate(middles) if len(found)]
        result[name] = Sample(
            method=method,
            entries=tuple(group[position] for position in used),
            thumbnails=tuple(thumbnails / f"{group[position].slide_id}.jpg" for position in used),
            middles=tuple(middles[position] for position in used),
        )
    return result


def estimate_sample(job: Sample) -> Stain | None:
    """The stain of one slide; files that cannot be read are passed over: taking their patches will say so."""
    pixels = [np.empty((0, 3), np.uint8)]
    for entry, middles_N2 in zip(job.entries, job.middles, strict=True):
        try:
            with open_slide(entry) as slide:
                pixels.append(read_fields(slide, middles=middles_N2))
        except SlideError:
            continue
    thumbnails = [np.asarray(Image.open(path).convert("RGB")) for path in job.thumbnails]
    return estimate(job.method, pixels_P3=np.concatenate(pixels), glass=_glass(thumbnails))


def spread(masks: Sequence[np.ndarray], *, dimensions: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """For each file's mask, level-0 (x, y) of its share of ``FIELDS`` points, evenly many pixels of tissue apart."""
    tissue = [np.flatnonzero(mask) for mask in masks]
    ends = np.cumsum([len(found) for found in tissue])
    points = np.unique(((np.arange(FIELDS) + 0.5) * ends[-1] / FIELDS).astype(int)) if ends[-1] else np.empty(0, int)
    files = np.searchsorted(ends, points, side="right")
    result = []
    for number, (mask, found, (width, height)) in enumerate(zip(masks, tissue, dimensions, strict=True)):
        own = points[files == number] - (ends[number] - len(found))
        y, x = np.unravel_index(found[own], mask.shape)
        scale_2 = (width / mask.shape[1], height / mask.shape[0])
        result.append((np.stack([x, y], axis=1) + 0.5) * scale_2)
    return result


def read_fields(slide: Slide, *, middles: np.ndarray) -> np.ndarray:
    """The pixels (P, 3) of fields about level-0 ``middles`` (n, 2), moved inward at the slide's edges."""
    assert slide.mpp is not None, "a usable slide has a scale"
    extent = min(FIELD_SIDE * max(1.0, FIELD_MPP / slide.mpp), *slide.dimensions)
    corners_N2 = np.clip(middles - extent / 2, 0, np.array(slide.dimensions) - extent)
    size = max(1, min(FIELD_SIDE, round(extent)))
    fields = [slide.read(x, y, extent=extent, size=size).reshape(-1, 3) for x, y in corners_N2]
    return np.concatenate([np.empty((0, 3), np.uint8), *fields])


def reference_of(config: PatchesConfig, *, method: Method, slides: Mapping[str, Stain | None]) -> Stain:
    """The package's reference, or the stain of the slide that ``patches.stain_reference`` names (``UserError``)."""
    name = config.stain_reference
    if name is None:
        return REFERENCES[method]
    if name not in slides:
        shown = ", ".join(sorted(slides)[:5])
        raise UserError(f"patches.stain_reference {name!r} is not a usable slide of this run; there are: {shown}")
    stain = slides[name]
    if stain is None:
        raise UserError(f"patches.stain_reference {name!r} has too little stained tissue; name another slide, or none")
    return stain


def _glass(thumbnails: Sequence[np.ndarray]) -> tuple[float, float, float]:
    return glass_colour(
        np.concatenate([np.empty((0, 3), np.uint8), *(t[::_SPARSE, ::_SPARSE].reshape(-1, 3) for t in thumbnails)])
    )
