"""What the benchmarks of painted fields share: parts of slides, maps on a grid, and agreement by tissue.

Shapes: N cells of a grid, F fields, T tissues.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from histoloom.atlas.maps.tissue_map import Classify, SlideMap, classify_slide
from histoloom.diffusion.painting.output import FIELD_FILE
from histoloom.run.directory import Run
from histoloom.seeding import numpy_generator
from histoloom.slides.procedural.slides import MAP_SCALE, TissueMap
from histoloom.slides.readers.open import open_slide

RESAMPLES = 2000


@dataclass(frozen=True)
class Part:
    """A part of a slide, the layout that its map gives, and the field that is painted from it, in one folder."""

    folder: Path
    name: str

    @property
    def slide(self) -> Path:
        """The part as a slide of its own, with its true map beside it where the slide has one."""
        return self.folder / f"{self.name}.tif"

    @property
    def layout(self) -> Path:
        """The clusters of the part's map, an indexed PNG with a legend."""
        return self.folder / f"{self.name}.png"

    @property
    def field(self) -> Path:
        """The painted field; its mask is beside it."""
        return self.folder / f"{self.name}-field" / FIELD_FILE

    @property
    def cells(self) -> Path:
        """What maps say about the cells of both."""
        return self.folder / f"{self.name}.npz"

    @property
    def source(self) -> str:
        """The name of the slide that the part was cut from."""
        return self.name.rpartition("-")[0]

    def mask(self) -> np.ndarray:
        """The cluster of each pixel of the field, as its layout asks for, uint8 (H, W)."""
        with Image.open(self.field.with_name("mask.png")) as image:
            values_HW = np.asarray(image)
        with Image.open(self.layout) as image:  # the mask numbers the clusters that the layout has
            found = np.unique(np.asarray(image))
        return found.astype(np.uint8)[values_HW]


def slides_of(run: Run) -> list[Path]:
    """The slides of a run, in the order of their names."""
    return [Path(path) for place in run.config.slides.paths for path in sorted(Path(place).glob("*.tif"))]


def parts_in(folder: Path) -> list[Part]:
    """The parts in a folder whose fields are finished and mapped."""
    return [Part(folder, path.stem) for path in sorted(folder.glob("*.npz"))]


def place_of(part: Part, dimensions: tuple[int, int], *, side: int, seed: int) -> tuple[int, int]:
    """The (left, top) of a part on a slide of (width, height), level-0 px: a random place."""
    rng = numpy_generator(seed, "painted part", part.name)
    left, top = (int(rng.integers((length - side) // MAP_SCALE + 1)) * MAP_SCALE for length in dimensions)
    return left, top


def cut_part(path: Path, part: Part, *, side: int, seed: int) -> None:
    """Cut a square of ``side`` px of level 0 at a random place of a slide and of its true map."""
    with open_slide(path) as slide:
        mpp, (width, height) = slide.mpp or 1.0, slide.dimensions
        left, top = place_of(part, (width, height), side=side, seed=seed)
        pixels = slide.pixels(left, top, level=0, width=side, height=side)
    write_flat(part.slide, pixels, mpp=mpp)
    truth = TissueMap.load(path)
    if truth is not None:
        scale = width // truth.class_hw.shape[1]
        rows, columns = (slice(start // scale, (start + side) // scale) for start in (top, left))
        TissueMap(truth.class_hw[rows, columns], truth.classes).save(part.slide)


def write_flat(path: Path, pixels_HW3: np.ndarray, *, mpp: float) -> None:
    """A tiled TIFF of one level that says its um/px."""
    tifffile.imwrite(
        path,
        np.ascontiguousarray(pixels_HW3),
        tile=(256, 256),
        photometric="rgb",
        compression="zlib",
        resolution=(1e4 / mpp,) * 2,
        resolutionunit="CENTIMETER",
    )


def map_of(path: Path, run: Run, classify: Classify, *, surroundings: bool) -> SlideMap:
    """A slide on the grid of ``histoloom map``."""
    config = run.config
    return classify_slide(
        path,
        classify=classify,
        surroundings=surroundings,
        size=config.patches.size,
        mpp=config.patches.mpp,
        limit=config.report.map_patches,
    )


def at_middles(values_hw: np.ndarray, slide_map: SlideMap) -> np.ndarray:
    """The value at the middle of each cell, from a map of the whole slide at any scale."""
    middle_N2 = (slide_map.boxes_N4[:, :2] + slide_map.boxes_N4[:, 2:]) / 2
    width, height = slide_map.dimensions
    rows = (middle_N2[:, 1] / height * values_hw.shape[0]).astype(int)
    columns = (middle_N2[:, 0] / width * values_hw.shape[1]).astype(int)
    return np.asarray(values_hw[rows, columns])


def confusions(pairs: Sequence[tuple[np.ndarray, np.ndarray]], *, tissues: int) -> np.ndarray:
    """How often each pair of tissues meets, (F, T, T), of pairs of maps (N,)."""
    counts_FTT = np.zeros((len(pairs), tissues, tissues), np.int64)
    for counts_TT, (one_N, other_N) in zip(counts_FTT, pairs, strict=True):
        np.add.at(counts_TT, (one_N, other_N), 1)
    return counts_FTT


def iou(counts_TT: np.ndarray) -> np.ndarray:
    """Intersection over union of each tissue, (T,); NaN where neither map has it."""
    right_T = counts_TT.diagonal().astype(float)
    union_T = counts_TT.sum(axis=0) + counts_TT.sum(axis=1) - right_T
    return np.divide(right_T, union_T, out=np.full(len(right_T), np.nan), where=union_T > 0)


def mean_iou(counts_FTT: np.ndarray, *, rng: np.random.Generator) -> tuple[float, float, float]:
    """The mean IoU, over the tissues of the first map, of all fields together, and its 95 % interval.

    The interval holds when fields are drawn again; a tissue that no drawn field has counts in no mean.
    """

    def mean(rows: np.ndarray) -> float:
        counts_TT = counts_FTT[rows].sum(axis=0)
        return float(iou(counts_TT)[counts_TT.sum(axis=1) > 0].mean())

    every = np.arange(len(counts_FTT))
    values = [mean(rows) for rows in rng.integers(len(every), size=(RESAMPLES, len(every)))]
    low, high = np.quantile(values, [0.025, 0.975])
    return mean(every), float(low), float(high)


def mean_interval(values_F: np.ndarray, *, rng: np.random.Generator) -> tuple[float, float, float]:
    """The mean of a value of each field, and its 95 % interval when fields are drawn again."""
    means = values_F[rng.integers(len(values_F), size=(RESAMPLES, len(values_F)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values_F.mean()), float(low), float(high)


def with_interval(value: tuple[float, float, float]) -> str:
    """``0.81 (0.75 to 0.86)``."""
    return f"{value[0]:.2f} ({value[1]:.2f} to {value[2]:.2f})"
