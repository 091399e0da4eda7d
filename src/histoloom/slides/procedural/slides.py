"""Procedural H&E slides with their true tissue maps, for the demo and for tests of clustering without labels.

A slide is glass with one section of tissue on it. The section is divided into regions of a few hundred um, each of
one tissue kind (textures.py), inside a capsule that follows its outline. Stains become colours by the law
of Beer and Lambert; a lens, a sensor and JPEG follow. Shape letters: 3 stains or colours, H height, W width; h and w
are those of the map, ``MAP_SCALE`` times smaller.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage
from scipy.spatial import cKDTree

from histoloom.errors import UserError
from histoloom.run.directory import disk_errors_explained, read_json, replacing, write_bytes, write_json
from histoloom.seeding import numpy_generator
from histoloom.slides.procedural.textures import TEXTURES, Canvas, capsule

CLASSES = ("empty space", "edge of tissue", *TEXTURES)
EMPTY, EDGE = 0, 1
MAP_SCALE = 4
EDGE_HALF_WIDTH = 24.0
REGION = 380.0
TILE = 256
SMALLEST = 512
_FORMAT = 1


@dataclass(frozen=True)
class Stain:
    """How a laboratory's stains absorb: ``absorbance_33`` (stain, RGB; natural log units), light ``white_3`` 0..255."""

    absorbance_33: np.ndarray
    white_3: np.ndarray


# Directions after Ruifrok & Johnston 2001, rotated apart; the lengths are strengths.
STAINS = (
    Stain(
        np.array([[1.30, 1.12, 0.46], [0.20, 0.92, 0.36], [0.14, 1.08, 0.84]], np.float32),
        np.array([243, 245, 247], np.float32),
    ),
    Stain(
        np.array([[0.80, 1.04, 0.48], [0.05, 0.66, 0.32], [0.03, 0.84, 0.66]], np.float32),
        np.array([248, 244, 243], np.float32),
    ),
)


@dataclass(frozen=True)
class Layout:
    """Where what lies: ``region_hw`` numbers, ``kind_R`` the class of each, ``depth_hw`` um inside the outline."""

    region_hw: np.ndarray
    kind_R: np.ndarray
    depth_hw: np.ndarray

    @property
    def truth_hw(self) -> np.ndarray:
        """The class of each pixel of the map, uint8."""
        truth_hw = self.kind_R[self.region_hw].astype(np.uint8)
        truth_hw[self.depth_hw < EDGE_HALF_WIDTH] = EDGE
        truth_hw[self.depth_hw <= -EDGE_HALF_WIDTH] = EMPTY
        return truth_hw


@dataclass(frozen=True)
class TissueMap:
    """The true tissue map of a slide, in two files next to it.

    ``NAME.truth.png`` is ``class_hw``, uint8, at any scale; ``NAME.truth.json`` has the names of ``classes``, and of
    slides that are made here the ``recipe``: what they depend on.
    """

    class_hw: np.ndarray
    classes: tuple[str, ...]
    recipe: Mapping[str, float] | None = None

    @staticmethod
    def load(slide_path: Path) -> TissueMap | None:
        """The map of a slide; None where one of its files is missing."""
        png, names = _truth_files(slide_path)
        if not (png.is_file() and names.is_file()):
            return None
        values = read_json(names)
        with Image.open(png) as image:
            return TissueMap(np.asarray(image), tuple(values["classes"]), values.get("recipe"))

    def save(self, slide_path: Path) -> None:
        """Write both files."""
        png, names = _truth_files(slide_path)
        write_json(names, {"classes": list(self.classes), "recipe": self.recipe})
        buffer = io.BytesIO()
        Image.fromarray(self.class_hw).save(buffer, format="PNG")
        write_bytes(png, buffer.getvalue())


def _truth_files(slide_path: Path) -> tuple[Path, Path]:
    stem = slide_path.stem
    return slide_path.with_name(f"{stem}.truth.png"), slide_path.with_name(f"{stem}.truth.json")


def make_slides(folder: Path, *, seed: int = 0, count: int = 6, size: int = 2048, mpp: float = 1.0) -> list[Path]:
    """Write ``count`` procedural slides into ``folder`` and return their paths.

    ``slide-01.tif``...: pyramidal, tiled, JPEG, ``size`` pixels square at ``mpp`` um/px; each with its ``TissueMap``,
    ``MAP_SCALE`` times smaller. Slide i depends on the seed and i, not on ``count``. Existing slides are kept; a file
    of that name that is not a procedural slide is a ``UserError``.
    """
    if count < 1 or mpp <= 0:
        raise UserError(f"count is {count} and mpp is {mpp}; both must be above 0")
    if size % 16 or min(size, size * mpp) < SMALLEST:
        raise UserError(
            f"size is {size} px at {mpp} um/px; procedural slides need a multiple of 16 px, "
            f"at least {SMALLEST} px and {SMALLEST} um"
        )
    with disk_errors_explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"slide-{number:02d}.tif" for number in range(1, count + 1)]
        for number, path in enumerate(paths, start=1):
            recipe = {"format": _FORMAT, "seed": seed, "number": number, "size": size, "mpp": mpp}
            if path.exists():
                png, names = _truth_files(path)
                old_recipe = read_json(names).get("recipe") if names.is_file() else None
                if old_recipe is None:
                    raise UserError(f"{path} is there and is not a procedural slide; choose another folder")
                if old_recipe == recipe and png.is_file():
                    continue
                path.unlink()  # first, so that a slide of another recipe never has a new map
            rgb_HW3, class_hw = draw_slide(seed, number=number, size=size, mpp=mpp)
            TissueMap(class_hw, CLASSES, recipe).save(path)
            write_pyramid(path, rgb_HW3, mpp=mpp)
    return paths


def draw_slide(seed: int, *, number: int, size: int, mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """Slide ``number`` (1, 2, ...) of ``seed``: its image, uint8 ``(size, size, 3)``, and its tissue map, uint8."""
    layout = draw_layout(
        Canvas(
            numpy_generator(seed, "procedural", number, "layout"),
            size // MAP_SCALE,
            size // MAP_SCALE,
            1 / mpp / MAP_SCALE,
        )
    )
    canvas = Canvas(numpy_generator(seed, "procedural", number, "tissue"), size, size, 1 / mpp)
    c_3HW = paint(layout, canvas=canvas)
    rng = numpy_generator(seed, "procedural", number, "light")
    return photograph(c_3HW, stain=jittered(STAINS[(number - 1) % len(STAINS)], rng=rng), rng=rng), layout.truth_hw


def draw_layout(canvas: Canvas) -> Layout:
    """An outline with regions inside, on a canvas of the map's scale; every class gets about the same area."""
    # Signed distance to the outline of one rough-edged, rounded section; positive inside.
    side = canvas.height / canvas.px
    y_hw, x_hw = np.mgrid[-1 : 1 : canvas.height * 1j, -1 : 1 : canvas.width * 1j] / 0.88
    lean = canvas.uniform(-0.15, 0.15)
    bulk_hw = 1 - np.abs(x_hw + lean * y_hw) ** 2.8 - np.abs(y_hw - lean * x_hw) ** 2.8
    inside_hw = bulk_hw + 0.16 * canvas.noise(side / 9) + 0.035 * canvas.noise(side / 40) > 0
    pieces_hw, _ = ndimage.label(inside_hw)
    largest = 1 + int(np.argmax(np.bincount(pieces_hw.ravel())[1:]))
    inside_hw = ndimage.binary_fill_holes(pieces_hw == largest)
    signed_hw = ndimage.distance_transform_edt(inside_hw) - ndimage.distance_transform_edt(~inside_hw)
    depth_hw = (signed_hw / canvas.px).astype(np.float32)

    # Regions: Voronoi cells of a jittered grid, with bent borders.
    spacing = min(REGION, canvas.height / canvas.px / 5)
    bend = spacing / 10
    y_hw, x_hw = np.mgrid[: canvas.height, : canvas.width]
    y_hw = y_hw + (bend * canvas.noise(spacing / 6) + 3.5 * canvas.noise(12)) * canvas.px
    x_hw = x_hw + (bend * canvas.noise(spacing / 6) + 3.5 * canvas.noise(12)) * canvas.px
    seeds_R2 = canvas.hexagonal_points(spacing, jitter=0.16)
    _, region = cKDTree(seeds_R2).query(np.stack([y_hw.ravel(), x_hw.ravel()], axis=1))
    region_hw = region.reshape(depth_hw.shape)

    # A tissue kind for each region: the largest first, each to the kind that has the least area so far.
    area_R = np.bincount(region_hw[depth_hw >= EDGE_HALF_WIDTH], minlength=len(seeds_R2))
    kinds = canvas.rng.permutation(np.arange(EDGE + 1, len(CLASSES)))
    total = np.zeros(len(kinds))
    kind_R = np.zeros(len(area_R), np.int64)
    for number in np.argsort(-area_R * canvas.rng.uniform(0.7, 1, len(area_R)), kind="stable"):
        least = int(np.argmin(total))
        kind_R[number] = kinds[least]
        total[least] += area_R[number]
    return Layout(region_hw, kind_R, depth_hw)


def paint(layout: Layout, *, canvas: Canvas) -> np.ndarray:
    """The layout's tissue as concentrations of stain, ``(3, H, W)``, on a canvas of full resolution."""
    c_3HW = np.zeros((3, canvas.height, canvas.width), np.float32)
    for number, box in enumerate(ndimage.find_objects(layout.region_hw + 1)):
        if box is None or layout.depth_hw[box][layout.region_hw[box] == number].max() < 0:
            continue
        rows, columns = (
            slice(max(0, part.start - 2) * MAP_SCALE, min(side, part.stop + 2) * MAP_SCALE)
            for part, side in zip(box, layout.region_hw.shape, strict=True)
        )
        crop = Canvas(canvas.rng, rows.stop - rows.start, columns.stop - columns.start, canvas.px)
        small = (
            slice(rows.start // MAP_SCALE, rows.stop // MAP_SCALE),
            slice(columns.start // MAP_SCALE, columns.stop // MAP_SCALE),
        )
        weight_HW = _enlarged(layout.region_hw[small] == number, sigma=2.0)
        c_3HW[:, rows, columns] += weight_HW * TEXTURES[CLASSES[layout.kind_R[number]]](crop)
    depth_HW = _enlarged(layout.depth_hw, sigma=MAP_SCALE)
    skin_3HW, cover_HW = capsule(canvas, depth_HW)
    c_3HW += cover_HW * (skin_3HW - c_3HW)
    rough_HW = depth_HW + 0.8 * canvas.noise(4)
    thickness_HW = 1 + 0.07 * canvas.noise(150)
    return c_3HW * thickness_HW / (1 + np.exp(np.clip(-1.6 * rough_HW, -30, 30)))


def _enlarged(field_hw: np.ndarray, *, sigma: float) -> np.ndarray:
    """A field of the map's scale at full resolution, its steps smoothed over ``sigma`` px."""
    field_HW = field_hw.astype(np.float32).repeat(MAP_SCALE, axis=0).repeat(MAP_SCALE, axis=1)
    return ndimage.gaussian_filter(field_HW, sigma)


def jittered(stain: Stain, *, rng: np.random.Generator) -> Stain:
    """The same laboratory on another day: each stain up to 8 % stronger or weaker, colours off by up to 3 %."""
    strength_31 = rng.uniform(0.92, 1.08, (3, 1))
    hue_33 = rng.uniform(0.97, 1.03, (3, 3))
    return Stain((stain.absorbance_33 * strength_31 * hue_33).astype(np.float32), stain.white_3)


def photograph(c_3HW: np.ndarray, *, stain: Stain, rng: np.random.Generator) -> np.ndarray:
    """The picture of stained tissue, uint8 ``(H, W, 3)``: Beer and Lambert's law, a soft lens, a noisy sensor."""
    rgb_HW3 = np.empty((*c_3HW.shape[1:], 3), np.uint8)
    for channel in range(3):
        density_HW = np.tensordot(stain.absorbance_33[:, channel], c_3HW, axes=1)
        light_HW = ndimage.gaussian_filter(stain.white_3[channel] * np.exp(-density_HW), 0.65)
        light_HW += 1.3 * rng.standard_normal(light_HW.shape, dtype=np.float32)
        rgb_HW3[..., channel] = np.clip(np.rint(light_HW), 0, 255)
    return rgb_HW3


def write_pyramid(path: Path, rgb_HW3: np.ndarray, *, mpp: float) -> None:
    """Write a tiled JPEG TIFF with at least three levels, each half the one before, that OpenSlide opens with mpp."""
    with replacing(path) as temporary, tifffile.TiffWriter(temporary) as tiff:
        level_HW3, factor = rgb_HW3, 1
        while factor <= 4 or max(level_HW3.shape) >= 2 * TILE:
            tiff.write(
                level_HW3,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 90},
                subfiletype=0 if factor == 1 else 1,
                resolution=(1e4 / (mpp * factor), 1e4 / (mpp * factor)),
                resolutionunit="CENTIMETER",
                metadata=None,
                software="histoloom",
            )
            # Each pixel of the next level is the mean of 2 x 2.
            height, width = (side // 2 * 2 for side in level_HW3.shape[:2])
            four = level_HW3[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
            level_HW3 = np.rint(four.mean(axis=(1, 3), dtype=np.float32)).astype(np.uint8)
            factor *= 2


def label_patches(
    truth: np.ndarray, *, slide_size: tuple[int, int], x: np.ndarray, y: np.ndarray, extent: np.ndarray
) -> np.ndarray:
    """The class that most of each patch shows, int64 ``(n,)``; of equals the first.

    ``truth`` ``(h, w)`` covers a slide of ``slide_size`` (width, height) px at any scale; ``x``, ``y`` (upper left)
    and ``extent`` (side) are ``(n,)`` arrays in the slide's px. A map pixel belongs to the patches that hold its
    centre; a patch smaller than a map pixel takes the nearest one.
    """
    x0, x1 = _covered(x, extent, scale=truth.shape[1] / slide_size[0], side=truth.shape[1])
    y0, y1 = _covered(y, extent, scale=truth.shape[0] / slide_size[1], side=truth.shape[0])
    votes = np.empty((int(truth.max()) + 1, len(x0)), np.int64)
    for kind in range(len(votes)):
        sums = np.pad((truth == kind).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
        votes[kind] = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    return votes.argmax(axis=0)


def _covered(start: np.ndarray, extent: np.ndarray, *, scale: float, side: int) -> tuple[np.ndarray, np.ndarray]:
    """First and past-the-last map pixel whose centres lie in each patch, along one axis; never empty."""
    low = np.asarray(start, float) * scale
    high = low + np.asarray(extent, float) * scale
    first = np.ceil(low - 0.5).astype(np.int64)
    last = np.ceil(high - 0.5).astype(np.int64)
    first = np.where(last <= first, np.floor((low + high) / 2).astype(np.int64), first)
    first = np.clip(first, 0, side - 1)
    return first, np.clip(np.maximum(last, first + 1), 1, side)
