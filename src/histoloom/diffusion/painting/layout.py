"""Layouts: which tissue shall be where on a painted field, from GeoJSON as QuPath writes it, or from an indexed PNG.

A layout is a map of tissues at the latent positions of the field, so that a boundary lies on a multiple of the
autoencoder's factor. Shapes: h x w latent positions, T tissues.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from PIL import Image

from histoloom.errors import UserError
from histoloom.slides.entries import SlideError
from histoloom.slides.regions import Area, fill_area, read_areas

OVERLAP = 0.02
"""share of the smaller of two areas of different tissues that may lie in the other"""
MPP_RATIO = 16.0
"""largest factor between the um/px of a layout and of a field"""
NOTHING = -1


@dataclass(frozen=True)
class Canvas:
    """The field to be painted: (height, width) of its latent positions, px of one along a side, and um/px."""

    shape_hw: tuple[int, int]
    factor: int
    mpp: float

    @staticmethod
    def of(size: tuple[int, int], *, factor: int, mpp: float, window: int) -> Canvas:
        """A field of about ``size`` (width, height) px; ``UserError`` where it is smaller than a ``window``, px."""
        width, height = size
        if min(width, height) < window:
            raise UserError(
                f"a field of {width} x {height} px is smaller than a patch of this generator ({window} px); "
                f"ask for at least --size {max(width, window)} {max(height, window)}"
            )
        return Canvas((round(height / factor), round(width / factor)), factor, mpp)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), px."""
        height, width = self.shape_hw
        return width * self.factor, height * self.factor


@dataclass(frozen=True)
class Layout:
    """``tissue_hw``: the place in ``names`` at each latent position, int16; ``NOTHING`` where no area lies."""

    tissue_hw: np.ndarray
    names: tuple[str, ...]

    @staticmethod
    def of(labels_HW: np.ndarray, *, names: Sequence[str], canvas: Canvas) -> Layout:
        """The layout of a map of any size that covers the whole canvas: places in ``names``, ``NOTHING`` for none."""
        height, width = canvas.shape_hw
        rows, columns = labels_HW.shape
        row_h = ((np.arange(height) + 0.5) * rows / height).astype(int)
        column_w = ((np.arange(width) + 0.5) * columns / width).astype(int)
        return Layout(labels_HW[row_h[:, None], column_w].astype(np.int16), tuple(names))

    def with_background(self, name: str | None) -> Layout:
        """The layout with ``name`` where no area lies; ``UserError`` where there is such a place and no name."""
        empty_hw = self.tissue_hw == NOTHING
        if not empty_hw.any():
            return self
        if name is None:
            raise UserError(
                f"{empty_hw.mean():.1%} of the field lies in no area of the layout; say what is there: "
                "--background TISSUE"
            )
        names = self.names if name in self.names else (*self.names, name)
        return Layout(np.where(empty_hw, np.int16(names.index(name)), self.tissue_hw).astype(np.int16), names)


def layout_size(path: Path, *, mpp: float, field_mpp: float) -> tuple[int, int]:
    """(width, height) of the field that a layout of ``mpp`` um/px covers, in px of ``field_mpp``."""
    _check_scale(mpp, field_mpp=field_mpp)
    if path.suffix.lower() == ".png":
        with _open_png(path) as image:
            width, height = image.size
    else:
        _, _, width, height = (math.ceil(bound) for bound in shapely.total_bounds([a.outline for a in _areas(path)]))
    return max(1, round(width * mpp / field_mpp)), max(1, round(height * mpp / field_mpp))


def read_layout(path: Path, canvas: Canvas, *, mpp: float) -> Layout:
    """The layout of a file whose coordinates, or pixels, have ``mpp`` um.

    A GeoJSON begins at (0, 0), and what lies beyond the canvas is cut off. A PNG covers the whole canvas. ``UserError``
    for a file that cannot be read, for areas of different tissues that overlap, and where nothing lies on the canvas.
    """
    _check_scale(mpp, field_mpp=canvas.mpp)
    layout = _read_png(path, canvas) if path.suffix.lower() == ".png" else _read_geojson(path, canvas, mpp=mpp)
    if (layout.tissue_hw == NOTHING).all():
        raise UserError(f"no area of {path.name} lies on the field; check its um/px: --mpp")
    return layout


def _check_scale(mpp: float, *, field_mpp: float) -> None:
    if not 1 / MPP_RATIO <= mpp / field_mpp <= MPP_RATIO:
        raise UserError(
            f"a layout of {mpp:g} um/px does not fit a field of {field_mpp:g} um/px: at most a factor of "
            f"{MPP_RATIO:g} lies between them; say the layout's um/px: --mpp"
        )


def _areas(path: Path) -> list[Area]:
    try:
        areas = [area for area in read_areas(path) if area.outline.area > 0]
    except SlideError as error:
        raise UserError(f"{path.name} cannot be read; give GeoJSON, or a PNG with a legend ({error.detail})") from error
    if not areas:
        raise UserError(f"{path.name} has no areas; draw annotations and give them classes, the names of tissues")
    if nameless := sum(not area.name for area in areas):
        raise UserError(
            f"{nameless} of {len(areas)} areas of {path.name} have no class; give each the name of a tissue"
        )
    return areas


def _read_geojson(path: Path, canvas: Canvas, *, mpp: float) -> Layout:
    areas = _areas(path)
    check_overlaps(areas, file=path.name)
    names = tuple(dict.fromkeys(area.name for area in areas))
    tissue_hw = np.full(canvas.shape_hw, NOTHING, np.int16)
    scale = mpp / canvas.mpp / canvas.factor
    for area in sorted(areas, key=lambda area: -area.outline.area):
        fill_area(tissue_hw, area.outline, value=names.index(area.name), origin=(0, 0), scale=(scale, scale))
    return Layout(tissue_hw, names)


def check_overlaps(areas: Sequence[Area], *, file: str) -> None:
    """``UserError`` where areas of different tissues overlap."""
    outlines = [area.outline for area in areas]
    for one, other in zip(*shapely.STRtree(outlines).query(outlines, predicate="intersects"), strict=True):
        if one >= other or areas[one].name == areas[other].name:
            continue
        shared = outlines[one].intersection(outlines[other]).area
        if shared > OVERLAP * min(outlines[one].area, outlines[other].area):
            raise UserError(
                f"areas of {areas[one].name!r} and {areas[other].name!r} in {file} overlap; cut one out of the other, "
                "so that each place has one tissue"
            )


def _open_png(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path.name} is no PNG that can be read ({error})") from error
    if image.mode not in ("P", "L", "I", "I;16", "1"):
        raise UserError(f"{path.name} has colours ({image.mode}); save it as an indexed PNG, a number for each tissue")
    return image


def legend_of(path: Path) -> Mapping[int, str]:
    """The names of an indexed PNG's values.

    They are in ``NAME.json`` beside it: ``{"0": NAME, ...}``, or ``{"classes": [NAME, ...]}``.
    """
    file = path.with_suffix(".json")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        classes = values.get("classes")
        pairs = enumerate(classes) if isinstance(classes, list) else values.items()
        return {int(value): str(name) for value, name in pairs}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f'{path.name} needs a legend, {file.name} beside it: {{"0": "NAME", "1": "NAME"}}, a name for each value'
        ) from error


def _read_png(path: Path, canvas: Canvas) -> Layout:
    legend = legend_of(path)
    with _open_png(path) as image:
        values_HW = np.asarray(image).astype(np.int64)
    found = [int(value) for value in np.unique(values_HW)]
    if unknown := [value for value in found if value not in legend]:
        raise UserError(f"the legend of {path.name} has no name for the value {unknown[0]}; add it, or another value")
    names = tuple(dict.fromkeys(legend[value] for value in found))
    place_of = np.zeros(max(found) + 1, np.int16)
    for value in found:
        place_of[value] = names.index(legend[value])
    return Layout.of(place_of[values_HW], names=names, canvas=canvas)
