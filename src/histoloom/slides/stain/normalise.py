"""Stain normalisation: a slide's colours as another laboratory would have made them.

Both methods estimate a slide's stain once, from a sample of its stained pixels, and map it to a reference: Macenko et
al. 2009 (ISBI) by the two stains' directions and strengths in optical density, Reinhard et al. 2001 (IEEE CG&A) by the
mean and deviation of each axis of Ruderman's colour space. Both keep glass as bright as it is.

Each slide is estimated once, from fields spread over its tissue; the estimates are kept in ``stain.json``. Files that
are fields of one slide share an estimate. An estimate depends on the slide alone, so that a slide that the run has
never seen is normalised as its own slides are.

Shape letters: P pixels, 3 colours (red, green, blue), S nodes of a table along one colour, N fields. Optical densities
are natural logarithms: -ln((value + 1) / (glass + 1)) for values 0..255.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter
from pydantic import TypeAdapter

from histoloom.config import PatchesConfig
from histoloom.errors import UserError
from histoloom.run.directory import read_json, write_json
from histoloom.slides.entries import SlideEntry, SlideError
from histoloom.slides.readers.base import Slide
from histoloom.slides.readers.open import open_slide
from histoloom.slides.tissue.mask import GLASS_STEP, PackedMask, glass_colour, tissue_mask

Method = Literal["macenko", "reinhard"]
Triple = tuple[float, float, float]

GLASS = 245.0
"""The value that glass gets, 0..255: below 255, so that its noise is not cut off."""

MIN_PIXELS = 2000
"""Stained pixels that an estimate needs."""

FIELDS = 64
"""Fields that are read of a slide."""

FIELD_SIDE, FIELD_MPP = 64, 1.0
"""Side of a field in px, and its um/px: fine enough to tell nuclei from what lies around them."""

_STAINED = (0.15, 0.05)
"""Least mean optical density of a stained pixel, and least difference between its colours (grey is no stain)."""

_EXTREMES = (1.0, 99.0)  # percentiles of Macenko et al.
_MIN_ANGLE = 5.0  # degrees between the stains; below this there is one stain, or none
_NODES = 33
_THUMBNAIL_SIDE = 1024

# Ruderman et al. 1998, as in Reinhard et al. 2001, equations 4 and 6.
_LMS_33 = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_LAB_33 = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1.0, 1.0, 1.0], [1.0, 1.0, -2.0], [1.0, -1.0, 0.0]])


@dataclass(frozen=True)
class Macenko:
    """Two stains: unit directions in optical density, and their strengths (99th percentiles); ``glass`` 0..255."""

    glass: Triple
    haematoxylin: Triple
    eosin: Triple
    strengths: tuple[float, float]

    @property
    def basis_33(self) -> np.ndarray:
        """Rows: the two stains and the rest, as long as they are strong: the rest by the stains' geometric mean."""
        stains_23 = np.array([self.haematoxylin, self.eosin])
        rest_3 = np.cross(*stains_23)
        lengths_3 = np.array([*self.strengths, np.sqrt(np.prod(self.strengths))])
        return np.vstack([stains_23, rest_3 / np.linalg.norm(rest_3)]) * lengths_3[:, None]


@dataclass(frozen=True)
class Reinhard:
    """Mean and deviation of Ruderman's l, alpha and beta over stained pixels; ``glass`` 0..255."""

    glass: Triple
    mean: Triple
    deviation: Triple


Stain = Macenko | Reinhard

REFERENCES: Mapping[Method, Stain] = {
    # The reference of M. Ludwig's widely copied code, and so of torchstain and others.
    "macenko": Macenko((GLASS,) * 3, (0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581), (1.9705, 1.0308)),
    # The mean of seven H&E slides after Macenko's normalisation (docs/explanation/stain.md).
    "reinhard": Reinhard((GLASS,) * 3, (8.59, -0.093, 0.036), (0.54, 0.082, 0.0185)),
}


def scanned_glass(pixels_P3: np.ndarray) -> Triple:
    """The colour of empty glass, 0..255, among a thumbnail's pixels; ``GLASS`` in all colours where there is none.

    Pixels of pure white were never scanned.
    """
    scanned_P3 = pixels_P3[(pixels_P3 < 255).any(axis=1)]
    colour_3 = glass_colour(scanned_P3) if len(scanned_P3) else None
    return (GLASS,) * 3 if colour_3 is None else _triple(colour_3)


def estimate(method: Method, *, pixels_P3: np.ndarray, glass: Triple) -> Stain | None:
    """A slide's stain from a sample of its pixels, uint8; None where too few of them are stained, or by one stain."""
    density_P3 = optical_density(pixels_P3, glass=glass)
    stained_P = (density_P3.mean(axis=1) > _STAINED[0]) & (np.ptp(density_P3, axis=1) > _STAINED[1])
    density_P3 = density_P3[stained_P]
    if len(density_P3) < MIN_PIXELS:
        return None
    if method == "macenko":
        return _estimate_macenko(density_P3, glass=glass)
    lab_P3 = rgb_to_lab(_light(density_P3))
    deviation_3 = lab_P3.std(axis=0)
    return Reinhard(glass, _triple(lab_P3.mean(axis=0)), _triple(deviation_3)) if deviation_3.min() > 1e-4 else None


def optical_density(pixels_P3: np.ndarray, *, glass: Triple) -> np.ndarray:
    """Optical density (P, 3) of values 0..255; 0 for glass."""
    return np.asarray(-np.log((pixels_P3 + 1.0) / (np.array(glass) + 1.0)))


def _estimate_macenko(density_P3: np.ndarray, *, glass: Triple) -> Macenko | None:
    """The extreme directions in the plane through the origin that holds most of the densities (Macenko et al. 2009)."""
    # The plane of the two largest singular vectors, with the signs of positive densities, and the angles in it.
    _, vectors_33 = np.linalg.eigh(density_P3.T @ density_P3)
    plane_32 = vectors_33[:, :0:-1] * np.sign(vectors_33[:, :0:-1].sum(axis=0))
    along_P, across_P = (density_P3 @ plane_32).T
    angles_2 = np.percentile(np.arctan2(across_P, along_P), _EXTREMES)
    if np.degrees(np.ptp(angles_2)) < _MIN_ANGLE:
        return None
    first_3, second_3 = (plane_32 @ (np.cos(angle), np.sin(angle)) for angle in angles_2)
    haematoxylin_3, eosin_3 = (first_3, second_3) if first_3[0] > second_3[0] else (second_3, first_3)

    # OD = V S (their equation 2): amounts S by the inverse of the directions V; strengths are 99th percentiles of S.
    directions = Macenko(glass, _triple(haematoxylin_3), _triple(eosin_3), (1.0, 1.0))
    amounts_P3 = density_P3 @ np.linalg.inv(directions.basis_33)
    strengths_2 = np.percentile(amounts_P3[:, :2], _EXTREMES[1], axis=0)
    if strengths_2.min() < _STAINED[0]:
        return None
    strengths = (float(strengths_2[0]), float(strengths_2[1]))
    return Macenko(glass, directions.haematoxylin, directions.eosin, strengths)


def normalise_pixels(pixels_P3: np.ndarray, *, stain: Stain, reference: Stain) -> np.ndarray:
    """Values 0..255 (P, 3, float) of a slide of ``stain`` as ``reference`` would have them.

    What is neither stain (pen, pigment) keeps its own colour under Macenko's method.
    """
    density_P3 = optical_density(pixels_P3, glass=stain.glass)
    if isinstance(stain, Macenko):
        assert isinstance(reference, Macenko), "stain and reference are of one method"
        # Amounts of the slide's own stains, in the reference's directions and strengths.
        moved_P3 = _light(density_P3 @ np.linalg.inv(stain.basis_33) @ reference.basis_33, glass=reference.glass)
        return np.clip(moved_P3, 0, 255)
    assert isinstance(reference, Reinhard), "stain and reference are of one method"
    lab_P3 = rgb_to_lab(_light(density_P3))
    # Equations 10 and 11 of Reinhard et al.: each axis gets the reference's mean and deviation.
    lab_P3 = (lab_P3 - stain.mean) * (np.array(reference.deviation) / stain.deviation) + reference.mean
    moved_P3 = lab_to_rgb(lab_P3)
    # Glass has no stain to move: the less dense a pixel, the more of its own colour it keeps.
    share_P1 = np.clip(density_P3.mean(axis=1, keepdims=True) / _STAINED[0], 0, 1)
    return np.clip(share_P1 * moved_P3 + (1 - share_P1) * _light(density_P3), 0, 255)


def _light(density_P3: np.ndarray, *, glass: Triple = (GLASS,) * 3) -> np.ndarray:
    return np.asarray((np.array(glass) + 1) * np.exp(-density_P3) - 1)


def rgb_to_lab(rgb_P3: np.ndarray) -> np.ndarray:
    """Ruderman's l, alpha and beta (P, 3) of values 0..255."""
    return np.asarray(np.log(np.maximum(rgb_P3, 1) @ _LMS_33.T) @ _LAB_33.T)


def lab_to_rgb(lab_P3: np.ndarray) -> np.ndarray:
    """The inverse of ``rgb_to_lab``."""
    return np.asarray(np.exp(lab_P3 @ np.linalg.inv(_LAB_33).T) @ np.linalg.inv(_LMS_33).T)


@dataclass(frozen=True)
class StainNormaliser:
    """``normalise_pixels`` of whole images, through a table of the colour cube with linear interpolation."""

    stain: Stain
    reference: Stain

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 (..., width, 3) in the reference's stain, of the same shape."""
        rows = Image.fromarray(np.ascontiguousarray(images).reshape(-1, *images.shape[-2:]))
        table = _colour_table(self)
        return np.array(rows.filter(table)).reshape(images.shape)  # a copy, which torch may write to


@lru_cache(maxsize=4)
def _colour_table(normaliser: StainNormaliser) -> ImageFilter.Color3DLUT:
    nodes_S = np.linspace(0, 255, _NODES)
    blue, green, red = np.meshgrid(nodes_S, nodes_S, nodes_S, indexing="ij")  # red runs fastest
    cube_P3 = np.stack([red.ravel(), green.ravel(), blue.ravel()], axis=1)
    moved_P3 = normalise_pixels(cube_P3, stain=normaliser.stain, reference=normaliser.reference) / 255
    return ImageFilter.Color3DLUT(_NODES, moved_P3.astype(np.float32).ravel())


def _triple(values_3: np.ndarray) -> Triple:
    first, second, third = (float(value) for value in values_3)
    return first, second, third


# --- the stain of each slide ---


@dataclass(frozen=True)
class SlideStains:
    """``stain.json``: the stain of each slide of a run, by the slide's name; None where it has too little of it."""

    method: Method
    reference: Stain
    slides: Mapping[str, Stain | None]

    @staticmethod
    def load(folder: Path) -> SlideStains:
        """Read ``stain.json`` of the patches stage."""
        return TypeAdapter(SlideStains).validate_python(read_json(folder / "stain.json"))

    def save(self, folder: Path) -> None:
        """Write ``stain.json``."""
        write_json(folder / "stain.json", asdict(self))

    def normaliser(self, stain: Stain | None) -> StainNormaliser | None:
        """The normaliser from ``stain`` to the reference; None for an unknown stain, which is left as it is."""
        return None if stain is None else StainNormaliser(stain, self.reference)

    def of_slide(self, slide: Slide, *, name: str | None = None) -> StainNormaliser | None:
        """The normaliser of the run's slide ``name``, or else of an open slide, estimated now (``SlideError``)."""
        if name is not None and name in self.slides:
            return self.normaliser(self.slides[name])
        thumbnail_HW3 = slide.thumbnail(_THUMBNAIL_SIDE)
        (centres_N2,) = spread_fields([tissue_mask(thumbnail_HW3)], dimensions=[slide.dimensions])
        pixels_P3 = read_fields(slide, centres=centres_N2)
        return self.normaliser(estimate(self.method, pixels_P3=pixels_P3, glass=_thumbnail_glass([thumbnail_HW3])))


@dataclass(frozen=True)
class StainJob:
    """Which fields to read of the files of one slide: their level-0 centres (N, 2) for each of ``entries``."""

    method: Method
    entries: tuple[SlideEntry, ...]
    thumbnails: tuple[Path, ...]
    centres: tuple[np.ndarray, ...]


def stain_jobs(
    entries: Iterable[SlideEntry], *, tissue: Mapping[str, PackedMask], thumbnails: Path, method: Method
) -> dict[str, StainJob]:
    """A job for each slide of the usable ``entries``; ``tissue`` are their masks by slide_id."""
    files: dict[str, list[SlideEntry]] = {}
    for entry in entries:
        if entry.usable:
            files.setdefault(entry.slide, []).append(entry)
    jobs = {}
    for name, group in files.items():
        masks = [tissue[entry.slide_id].unpacked() for entry in group]
        centres = spread_fields(masks, dimensions=[(entry.width, entry.height) for entry in group])
        used = [number for number, centres_N2 in enumerate(centres) if len(centres_N2)]
        jobs[name] = StainJob(
            method=method,
            entries=tuple(group[number] for number in used),
            thumbnails=tuple(thumbnails / f"{group[number].slide_id}.jpg" for number in used),
            centres=tuple(centres[number] for number in used),
        )
    return jobs


def estimate_slide(job: StainJob) -> Stain | None:
    """The stain of one slide. Files that cannot be read are skipped: the extraction of their patches reports them."""
    pixels = [np.empty((0, 3), np.uint8)]
    for entry, centres_N2 in zip(job.entries, job.centres, strict=True):
        try:
            with open_slide(entry) as slide:
                pixels.append(read_fields(slide, centres=centres_N2))
        except SlideError:
            continue
    thumbnails = [np.asarray(Image.open(path).convert("RGB")) for path in job.thumbnails]
    return estimate(job.method, pixels_P3=np.concatenate(pixels), glass=_thumbnail_glass(thumbnails))


def spread_fields(masks: Sequence[np.ndarray], *, dimensions: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """For each file's mask, level-0 (x, y) of its share of ``FIELDS`` points, evenly many pixels of tissue apart."""
    tissue = [np.flatnonzero(mask) for mask in masks]
    ends = np.cumsum([len(places) for places in tissue])
    points = np.unique(((np.arange(FIELDS) + 0.5) * ends[-1] / FIELDS).astype(int)) if ends[-1] else np.empty(0, int)
    files = np.searchsorted(ends, points, side="right")
    result = []
    for number, (mask, places, (width, height)) in enumerate(zip(masks, tissue, dimensions, strict=True)):
        own = points[files == number] - (ends[number] - len(places))
        y, x = np.unravel_index(places[own], mask.shape)
        scale_2 = (width / mask.shape[1], height / mask.shape[0])
        result.append((np.stack([x, y], axis=1) + 0.5) * scale_2)
    return result


def read_fields(slide: Slide, *, centres: np.ndarray) -> np.ndarray:
    """The pixels (P, 3) of fields about level-0 ``centres`` (N, 2), moved inward at the slide's edges."""
    assert slide.mpp is not None, "a usable slide has a scale"
    extent = min(FIELD_SIDE * max(1.0, FIELD_MPP / slide.mpp), *slide.dimensions)
    corners_N2 = np.clip(centres - extent / 2, 0, np.array(slide.dimensions) - extent)
    size = max(1, min(FIELD_SIDE, round(extent)))
    fields = [slide.read(x, y, extent=extent, size=size).reshape(-1, 3) for x, y in corners_N2]
    return np.concatenate([np.empty((0, 3), np.uint8), *fields])


def reference_of(config: PatchesConfig, *, method: Method, slides: Mapping[str, Stain | None]) -> Stain:
    """The package's reference, or the stain of the slide that ``patches.stain_reference`` names (``UserError``)."""
    name = config.stain_reference
    if name is None:
        return REFERENCES[method]
    if name not in slides:
        usable = ", ".join(sorted(slides)[:5])
        raise UserError(f"patches.stain_reference {name!r} is not a usable slide of this run; there are: {usable}")
    stain = slides[name]
    if stain is None:
        raise UserError(f"patches.stain_reference {name!r} has too little stained tissue; name another slide, or none")
    return stain


def _thumbnail_glass(thumbnails: Sequence[np.ndarray]) -> Triple:
    sparse = [thumbnail[::GLASS_STEP, ::GLASS_STEP].reshape(-1, 3) for thumbnail in thumbnails]
    return scanned_glass(np.concatenate([np.empty((0, 3), np.uint8), *sparse]))
