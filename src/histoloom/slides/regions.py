"""Regions of slides that someone has drawn: GeoJSON as QuPath exports it, or masks as pictures.

Patches are drawn inside the regions, and outside of those whose name begins with ``Ignore`` (QuPath's ``Ignore*``).
Where a file has no other regions than those, the rest of the slide is inside. A mask is 0 outside; where it has several
other values, each of them is a region's name. Where regions overlap, the smaller one has the place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from shapely import Polygon, make_valid
from shapely.errors import ShapelyError
from shapely.geometry import shape
from skimage.draw import polygon

from histoloom.errors import SlidesAbsent, UserError
from histoloom.slides.entries import SlideError
from histoloom.slides.tissue.mask import PackedMask

IGNORE = "ignore"
OUTLINES, MASKS = (".geojson", ".json"), (".png", ".tif", ".tiff")
UNNAMED = ""
NO_REGIONS = "it has no file of regions (slides.regions); a file NAME.geojson that holds only [] takes all of the slide"

_DETECTIONS = ("detection", "cell", "tile")  # QuPath's objects that no one has drawn
_MOST_MASK_PIXELS = 2**29
_MOST_NAMES = 250


@dataclass(frozen=True)
class Regions:
    """The regions of a slide in the places of its tissue mask.

    ``labels``: 0 outside, else the number of a name, from 1. ``names``: what the regions are called, "" for those
    without a name.
    """

    labels: PackedMask
    names: tuple[str, ...]

    @property
    def inside_hw(self) -> np.ndarray:
        """Where patches may lie, bool (h, w)."""
        return np.asarray(self.labels.unpacked() > 0)


@dataclass(frozen=True)
class Area:
    """A drawn area: the name of its class, its outline in px as QuPath counts them, and QuPath's metadata of it."""

    name: str
    outline: Polygon
    metadata: Mapping[str, str]


class RegionFiles:
    """The files of regions of a run's slides: a folder with a file for each slide, or one file.

    A file is called as its slide, with or without the slide's own ending: ``a.geojson`` or ``a.svs.geojson`` for
    ``a.svs``.
    """

    def __init__(self, place: str) -> None:
        """``SlidesAbsent`` where there is nothing at ``place``; ``UserError`` where it is a file of another kind."""
        path = Path(place)
        kinds = (*OUTLINES, *MASKS)
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in kinds)
        elif path.is_file() and path.suffix.lower() in kinds:
            files = [path]
        elif path.exists():
            raise UserError(f"{path} is no file of regions; they end in {', '.join(kinds)}")
        else:
            raise SlidesAbsent(f"no such file or folder of regions: {path} (slides.regions)")
        self.place = path
        self._files: dict[str, Path] = {}
        for file in reversed(files):  # .geojson goes before .png of the same name
            self._files[file.stem] = file

    def of(self, slide: Path) -> Path | None:
        """The file of a slide; None where there is none. A slide is no mask of itself."""
        file = self._files.get(slide.name) or self._files.get(slide.stem)
        return None if file is None or file.resolve() == slide.resolve() else file


def read_regions(
    path: Path, *, dimensions: tuple[int, int], origin: tuple[int, int], shape_hw: tuple[int, int]
) -> Regions:
    """The regions in ``path`` of a slide of ``dimensions`` (width, height), level-0 px, as a mask of ``shape_hw``.

    ``origin``: the level-0 (x, y) from which QuPath counts. Raises ``SlideError`` where the file cannot be used.
    """
    if path.suffix.lower() in MASKS:
        return _read_mask(path, dimensions=dimensions, shape_hw=shape_hw)
    drawn = read_areas(path)
    height, width = shape_hw
    scale = width / dimensions[0], height / dimensions[1]
    ignored = [area for area in drawn if area.name.lower().startswith(IGNORE)]
    wanted = sorted((area for area in drawn if area not in ignored), key=lambda area: -area.outline.area)
    names = tuple(sorted({area.name for area in wanted})) or (UNNAMED,)
    if len(names) > _MOST_NAMES:
        raise SlideError(f"its regions have {len(names)} names, more than {_MOST_NAMES}", detail=path.name)
    label_hw = np.full(shape_hw, 0 if wanted else 1, np.uint8)
    for area in wanted:
        fill_area(label_hw, area.outline, value=names.index(area.name) + 1, origin=origin, scale=scale)
    for area in ignored:
        fill_area(label_hw, area.outline, value=0, origin=origin, scale=scale)
    return Regions(PackedMask.of(label_hw), names)


def read_areas(path: Path) -> list[Area]:
    """The areas in a GeoJSON file; lines, points and QuPath's detections are passed by. Raises ``SlideError``."""
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
        return [area for feature in _features(values) for area in _areas_of(feature)]
    except (OSError, ValueError, TypeError, KeyError, ShapelyError) as error:
        raise SlideError(
            "its regions cannot be read; export them from QuPath as GeoJSON", detail=f"{path.name}: {error}"
        ) from error


def _features(values: object) -> list[dict[str, Any]]:
    """The features of a FeatureCollection, of a list of them, or one feature."""
    if isinstance(values, list):
        return [feature for part in values for feature in _features(part)]
    if not isinstance(values, dict) or not isinstance(values.get("properties") or {}, dict):
        raise TypeError("no GeoJSON")
    if values.get("type") == "FeatureCollection":
        return _features(list(values["features"]))
    if values.get("type") == "Feature":
        return [values]
    raise ValueError("neither a FeatureCollection nor a Feature")


def _areas_of(feature: dict[str, Any]) -> list[Area]:
    properties = feature.get("properties") or {}
    if properties.get("objectType") in _DETECTIONS or feature.get("geometry") is None:
        return []
    kind = properties.get("classification") or properties.get("name")
    name = kind.get("name") if isinstance(kind, dict) else kind
    metadata = properties.get("metadata")
    texts = {str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}
    outlines = _polygons(make_valid(shape(feature["geometry"])))
    return [Area(str(name or UNNAMED), outline, texts) for outline in outlines]


def _polygons(geometry: object) -> list[Polygon]:
    if isinstance(geometry, Polygon):
        return [geometry]
    parts: Sequence[object] = getattr(geometry, "geoms", ())
    return [area for part in parts for area in _polygons(part)]


def fill_area(
    label_hw: np.ndarray,
    area: Polygon,
    *,
    value: int,
    origin: tuple[int, int],
    scale: tuple[float, float],
) -> None:
    """Set the places whose middle lies in ``area`` (px of the slide, as QuPath counts) to ``value``."""
    inside_hw = np.zeros(label_hw.shape, bool)
    for ring, inside in ((area.exterior, True), *((hole, False) for hole in area.interiors)):
        corners_N2 = (np.asarray(ring.coords)[:, :2] + origin) * scale - 0.5
        inside_hw[polygon(corners_N2[:, 1], corners_N2[:, 0], label_hw.shape)] = inside
    label_hw[inside_hw] = value


def _read_mask(path: Path, *, dimensions: tuple[int, int], shape_hw: tuple[int, int]) -> Regions:
    """A mask of any scale, each place of ``shape_hw`` as the mask's pixel at its middle."""
    try:
        values_hw = _mask_values(path, at_least=max(shape_hw))
    except (OSError, ValueError, tifffile.TiffFileError, Image.DecompressionBombError) as error:
        raise SlideError("its mask cannot be read; save it as PNG or TIFF", detail=f"{path.name}: {error}") from error
    rows, columns = values_hw.shape
    if abs(columns / rows * dimensions[1] / dimensions[0] - 1) > 0.01 + 1 / min(rows, columns):
        raise SlideError(
            f"its mask has {columns} x {rows} px, other proportions than the slide ({dimensions[0]} x "
            f"{dimensions[1]} px); make the mask of the whole slide",
            detail=path.name,
        )
    height, width = shape_hw
    row_h = ((np.arange(height) + 0.5) * rows / height).astype(int)
    column_w = ((np.arange(width) + 0.5) * columns / width).astype(int)
    picked_hw = values_hw[row_h[:, None], column_w]
    found = [int(value) for value in np.unique(values_hw) if value]
    if len(found) > _MOST_NAMES:
        raise SlideError(f"its mask has {len(found)} values, not one for each kind of region", detail=path.name)
    names = tuple(str(value) for value in found) if len(found) > 1 else (UNNAMED,)
    label_hw = np.zeros(shape_hw, np.uint8)
    for number, value in enumerate(found, 1):
        label_hw[picked_hw == value] = number
    return Regions(PackedMask.of(label_hw), names)


def _mask_values(path: Path, *, at_least: int) -> np.ndarray:
    """The values of a mask, (h, w); of a pyramid's coarsest level with a side of ``at_least`` px."""
    if path.suffix.lower() == ".png":
        with Image.open(path) as image:
            values = np.asarray(image)
    else:
        with tifffile.TiffFile(path) as tiff:
            levels = tiff.series[0].levels
            enough = [level for level in levels if max(level.shape[:2]) >= at_least]
            chosen = (enough or levels[:1])[-1]
            if np.prod(chosen.shape) > _MOST_MASK_PIXELS:
                raise ValueError(f"{chosen.shape[1]} x {chosen.shape[0]} px in one level; save it as a pyramid")
            values = np.asarray(chosen.asarray())
    if values.ndim == 3:
        colours = values[..., :3] if values.shape[2] >= 3 else values[..., :1]
        values = colours.max(axis=2)
    if values.ndim != 2:
        raise ValueError(f"{values.ndim} dimensions")
    return values
