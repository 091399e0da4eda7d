"""Which tissue lies where on a slide of the run: from its tissue map where there is one, else from its patches.

Shape suffixes: N boxes (cells of a map, or patches), 4 their sides (left, top, right, bottom) in level-0 px.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.spatial import cKDTree

from histoloom.atlas.maps.corrections import MapSource, kept_map
from histoloom.diffusion.painting.layout import NOTHING
from histoloom.names import Label, clustering_of
from histoloom.slides.entries import SlideError
from histoloom.slides.regions import fill_area, read_areas

Source = Literal["map", "report", "patches"]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class SlideTissue:
    """The tissue of each place of a slide: ``cells`` gives places in ``names``, ``NOTHING`` where nothing is known.

    ``source``: the map that ``histoloom map`` made last, the report's, or the patches.
    """

    names: tuple[str, ...]
    source: Source
    cells: Callable[[Box, tuple[int, int]], np.ndarray]
    """from a part of the slide, level-0 px, and (rows, columns), int16 (rows, columns)"""


def tissue_of_boxes(
    boxes_N4: np.ndarray, group_N: np.ndarray, *, names: tuple[str, ...], source: Source
) -> SlideTissue:
    """From squares with groups, -1 for none: a place has the group of the square whose middle is nearest."""
    middle_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2
    half = float((boxes_N4[:, 2:] - boxes_N4[:, :2]).max(initial=0)) / 2
    tree = cKDTree(middle_N2) if len(middle_N2) else None

    def cells(box: Box, shape_hw: tuple[int, int]) -> np.ndarray:
        if tree is None:
            return np.full(shape_hw, NOTHING, np.int16)
        left, top, right, bottom = box
        y_h = top + (np.arange(shape_hw[0]) + 0.5) * (bottom - top) / shape_hw[0]
        x_w = left + (np.arange(shape_hw[1]) + 0.5) * (right - left) / shape_hw[1]
        points_hw2 = np.stack(np.broadcast_arrays(x_w[None], y_h[:, None]), axis=-1)
        distance_hw, nearest_hw = tree.query(points_hw2, p=np.inf)
        return np.where(distance_hw <= half, group_N[nearest_hw], NOTHING).astype(np.int16)

    return SlideTissue(names, source, cells)


def tissue_of_map(run: Path, *, slide: str, k: int, labels: dict[int, Label]) -> SlideTissue | None:
    """From the last map that ``histoloom map`` made of the slide; None where there is none of the present clusters.

    Areas of clusters have their present names.
    """
    file = kept_map(run, slide=slide, k=k)
    if not file.is_file():
        return None
    try:
        areas = [(area, MapSource.of(area)) for area in read_areas(file)]
    except SlideError:
        return None
    clustering = clustering_of(run)
    known = [(area, source) for area, source in areas if source is not None and source.clustering == clustering]
    if not known:
        return None
    of_area = [labels[source.clusters[0]].name if source.clusters else area.name for area, source in known]
    names, origin = tuple(dict.fromkeys(of_area)), known[0][1].origin

    def cells(box: Box, shape_hw: tuple[int, int]) -> np.ndarray:
        left, top, right, bottom = box
        scale = shape_hw[1] / (right - left), shape_hw[0] / (bottom - top)
        # ``fill_area`` counts from whole px; the rest of the corner is moved into the outline by its own scale.
        corner = (origin[0] - round(left), origin[1] - round(top))
        place_hw = np.full(shape_hw, NOTHING, np.int16)
        for (area, _), name in sorted(zip(known, of_area, strict=True), key=lambda one: -one[0][0].outline.area):
            fill_area(place_hw, area.outline, value=names.index(name), origin=corner, scale=scale)
        return place_hw

    return SlideTissue(names, "map", cells)
