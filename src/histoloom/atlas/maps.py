"""Labels on a slide, as a picture over its thumbnail and as GeoJSON.

Shape suffixes: N cells, 4 the sides of a cell (left, top, right, bottom) in level-0 px, H and W the picture's height
and width, K clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from histoloom.atlas.palette import Rgb

_TOUCHING = 1.0
"""Cells whose sides are at most this many level-0 px apart are neighbours: positions are rounded."""


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
    boxes_N4: np.ndarray, *, labels_N: np.ndarray, names: Mapping[int, str], colours: Sequence[Rgb]
) -> dict[str, Any]:
    """A FeatureCollection that QuPath opens: one annotation for each horizontal run of cells of one class.

    Clusters that share a name are one class, in the colour of the first of them. Coordinates are level-0 px.
    """
    first_of_name: dict[str, int] = {}
    for cluster in sorted(names):
        first_of_name.setdefault(names[cluster], cluster)
    classes_N = np.array([first_of_name[names[int(label)]] for label in labels_N], dtype=int)
    features = [
        _feature(box, name=names[cluster], colour=colours[cluster]) for box, cluster in _runs(boxes_N4, classes_N)
    ]
    return {"type": "FeatureCollection", "features": features}


def _runs(boxes_N4: np.ndarray, classes_N: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Cells that touch side by side in one row, of one class, joined from left to right."""
    runs: list[tuple[np.ndarray, int]] = []
    for position in np.lexsort((boxes_N4[:, 0], boxes_N4[:, 3], boxes_N4[:, 1])):
        box, cluster = boxes_N4[position], int(classes_N[position])
        if runs and runs[-1][1] == cluster and _continues(runs[-1][0], box):
            runs[-1][0][2] = box[2]
        else:
            runs.append((box.copy(), cluster))
    return runs


def _continues(run_4: np.ndarray, box_4: np.ndarray) -> bool:
    same_row = run_4[1] == box_4[1] and run_4[3] == box_4[3]
    return bool(same_row and abs(box_4[0] - run_4[2]) <= _TOUCHING)


def _feature(box_4: np.ndarray, *, name: str, colour: Rgb) -> dict[str, Any]:
    left, top, right, bottom = (round(float(side), 2) for side in box_4)
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": name, "color": [int(channel) for channel in colour]},
        },
    }
