"""Labels on a slide, as a picture over its thumbnail and as GeoJSON.

Shape suffixes: N cells, 4 the sides of a cell (left, top, right, bottom) in level-0 px, H and W the picture's height
and width, K clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import shapely

from histoloom.atlas.maps.palette import Rgb
from histoloom.names import plain

_DIGITS = 2  # of a coordinate in level-0 px


def overlay(
    boxes_N4: np.ndarray,
    *,
    labels_N: np.ndarray,
    colours: Sequence[Rgb],
    dimensions: tuple[int, int],
    shape: tuple[int, int],
    opacity: float = 0.5,
) -> np.ndarray:
    """The classes as a picture to lay over a thumbnail: uint8 (H, W, 4), transparent where no cell is.

    ``dimensions`` are the slide's (width, height) in level-0 px, ``shape`` the thumbnail's (H, W) in px.
    """
    height, width = shape
    layer_HW4 = np.zeros((height, width, 4), dtype=np.uint8)
    scale_4 = np.array([width / dimensions[0], height / dimensions[1]] * 2)
    pixels_N4 = np.rint(boxes_N4 * scale_4).astype(int)
    pixels_N4 = np.clip(pixels_N4, 0, [width, height, width, height])
    alpha = round(255 * opacity)
    for (left, top, right, bottom), label in zip(pixels_N4, labels_N, strict=True):
        layer_HW4[top : max(bottom, top + 1), left : max(right, left + 1)] = (*colours[int(label)], alpha)
    return layer_HW4


def blend(picture_HW3: np.ndarray, *, layer_HW4: np.ndarray) -> np.ndarray:
    """``layer_HW4`` over ``picture_HW3``: uint8 (H, W, 3)."""
    alpha_HW1 = layer_HW4[..., 3:].astype(np.float64) / 255
    mixed = picture_HW3 * (1 - alpha_HW1) + layer_HW4[..., :3] * alpha_HW1
    return np.rint(mixed).astype(np.uint8)


def geojson(
    boxes_N4: np.ndarray,
    *,
    labels_N: np.ndarray,
    names: Mapping[int, str],
    colours: Sequence[Rgb],
    flags: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """A FeatureCollection that QuPath (0.4 and later) opens: one annotation for each connected area of one class.

    Cells that touch along a side are joined; holes stay holes. Clusters that share a name are one class, in the
    colour of the first of them, with the flags of all of them. Coordinates are those of ``boxes_N4``, px, to a
    hundredth.
    """
    first_of_name: dict[str, int] = {}
    for cluster in sorted(names):
        first_of_name.setdefault(plain(names[cluster]), cluster)
    classes_N = np.array([first_of_name[plain(names[int(label)])] for label in labels_N], dtype=int)
    features = [
        _feature(
            area, name=names[cluster], colour=colours[cluster], flag=_flags(names, name=names[cluster], flags=flags)
        )
        for cluster in np.unique(classes_N).tolist()
        for area in _areas(boxes_N4[classes_N == cluster])
    ]
    return {"type": "FeatureCollection", "features": features}


def _areas(boxes_N4: np.ndarray) -> list[shapely.Polygon]:
    """The connected areas of cells, from top to bottom; rounded first, so that neighbours share their corners."""
    merged = shapely.union_all(shapely.box(*np.round(boxes_N4, _DIGITS).T))
    areas = shapely.orient_polygons(shapely.get_parts(shapely.normalize(shapely.simplify(merged, 0))))
    return sorted(areas.tolist(), key=lambda area: (area.bounds[1], area.bounds[0], area.bounds[3], area.bounds[2]))


def _flags(names: Mapping[int, str], *, name: str, flags: Mapping[int, str] | None) -> str:
    """The flags of all clusters of a name: ``mixed, unsure``."""
    return ", ".join(
        sorted({(flags or {}).get(cluster, "") for cluster in names if plain(names[cluster]) == plain(name)} - {""})
    )


def _feature(area: shapely.Polygon, *, name: str, colour: Rgb, flag: str) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": {
            "type": "Polygon",
            "coordinates": [[list(corner) for corner in ring.coords] for ring in (area.exterior, *area.interiors)],
        },
        "properties": {
            "objectType": "annotation",
            "classification": {"name": name, "color": [int(channel) for channel in colour]},
            **({"metadata": {"flag": flag}} if flag else {}),
        },
    }
