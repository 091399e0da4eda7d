"""Cluster labels on a slide: as a picture over its thumbnail, and as GeoJSON for QuPath; the record of a drawn map.

This module loads quickly; ``tissue_map`` classifies slides. Shape suffixes: N cells, 4 the sides of a cell (left, top,
right, bottom) in level-0 px, H and W the picture's height and width in px.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import shapely

from histoloom.atlas.maps.palette import Rgb
from histoloom.names import Label, normalised
from histoloom.run.directory import read_json, write_json

_DIGITS = 2  # of a coordinate in level-0 px
_OPACITY = 128  # of 255; of a cell over the thumbnail
_PALER = 0.35  # how far the thumbnail moves towards white under the boxes of one cluster


@dataclass(frozen=True)
class MapRecord:
    """``report/maps/SLIDE_ID.json``: what a drawn tissue map shows, or why it is missing.

    ``clusters`` is the fingerprint of the clustering, ``limit`` the most cells (``report.map_patches``), ``patches``
    the classified cells, ``colours`` the colour of each cluster as ``#rrggbb``.
    """

    slide_id: str
    title: str = ""
    clusters: str = ""
    k: int = 0
    limit: int = 0
    patches: int = 0
    colours: tuple[str, ...] = ()
    missing: str = ""

    @staticmethod
    def load(path: Path) -> MapRecord | None:
        """Read the file; None where there is none."""
        if not path.is_file():
            return None
        known, content = {field.name for field in fields(MapRecord)}, read_json(path)
        values = {key: value for key, value in content.items() if key in known}
        return MapRecord(**values | {"colours": tuple(values.get("colours", ()))})

    def save(self, path: Path) -> None:
        """Write the file in one step."""
        unused = "patches" if self.missing else "missing"
        write_json(path, {key: value for key, value in asdict(self).items() if key != unused})


def overlay(
    thumbnail_HW3: np.ndarray,
    *,
    boxes_N4: np.ndarray,
    labels_N: np.ndarray,
    colours: Sequence[Rgb],
    dimensions: tuple[int, int],
) -> np.ndarray:
    """The thumbnail with each cell half covered by the colour of its label: uint8 (H, W, 3).

    ``dimensions`` are the slide's (width, height) in level-0 px. A cell covers at least one pixel.
    """
    height, width = thumbnail_HW3.shape[:2]
    scale_4 = np.array([width / dimensions[0], height / dimensions[1]] * 2)
    pixels_N4 = np.clip(np.rint(boxes_N4 * scale_4).astype(int), 0, [width, height, width, height])
    layer_HW4 = np.zeros((height, width, 4), dtype=np.uint8)
    for (left, top, right, bottom), label in zip(pixels_N4, labels_N, strict=True):
        layer_HW4[top : max(bottom, top + 1), left : max(right, left + 1)] = (*colours[int(label)], _OPACITY)
    alpha_HW1 = layer_HW4[..., 3:].astype(np.float64) / 255
    return np.rint(thumbnail_HW3 * (1 - alpha_HW1) + layer_HW4[..., :3] * alpha_HW1).astype(np.uint8)


def cluster_overlay(
    thumbnail_HW3: np.ndarray, *, boxes_N4: np.ndarray, dimensions: tuple[int, int], colour: Rgb
) -> np.ndarray:
    """A paler thumbnail with the patches of one cluster, ``boxes_N4``, in ``colour``: uint8 (H, W, 3).

    ``dimensions`` are the slide's (width, height) in level-0 px.
    """
    pale_HW3 = np.rint(thumbnail_HW3 * (1 - _PALER) + 255 * _PALER).astype(np.uint8)
    labels_N = np.zeros(len(boxes_N4), int)
    return overlay(pale_HW3, boxes_N4=boxes_N4, labels_N=labels_N, colours=[colour], dimensions=dimensions)


def geojson(
    boxes_N4: np.ndarray,
    *,
    labels_N: np.ndarray,
    labels: Mapping[int, Label],
    colours: Sequence[Rgb],
    metadata: Callable[[tuple[int, ...]], dict[str, str]] = lambda _clusters: {},
) -> str:
    """A FeatureCollection that QuPath (0.4 and later) opens: one annotation for each connected area of one class.

    ``labels_N`` are the cells' clusters, ``labels`` the name and flag of each cluster. Cells that share a side are
    joined; holes stay holes. Clusters that share a name become one class, in the colour of the first of them, with
    the flags of all of them. ``metadata``: what else QuPath is to keep of an area of these clusters. Coordinates are
    those of ``boxes_N4``, px, to a hundredth.
    """
    clusters_of_name = defaultdict(list)
    for cluster in sorted(labels):
        clusters_of_name[normalised(labels[cluster].name)].append(cluster)
    features = []
    for clusters in clusters_of_name.values():
        inside_N = np.isin(labels_N, clusters)
        if not inside_N.any():
            continue
        first, flags = clusters[0], sorted({labels[cluster].flag for cluster in clusters} - {""})
        kept = ({"flag": ", ".join(flags)} if flags else {}) | metadata(tuple(clusters))
        properties = {
            "objectType": "annotation",
            "classification": {"name": labels[first].name, "color": [int(channel) for channel in colours[first]]},
            **({"metadata": kept} if kept else {}),
        }
        for area in _areas(boxes_N4[inside_N]):
            rings = [[list(corner) for corner in ring.coords] for ring in (area.exterior, *area.interiors)]
            geometry = {"type": "Polygon", "coordinates": rings}
            features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return json.dumps({"type": "FeatureCollection", "features": features}, ensure_ascii=False)


def _areas(boxes_N4: np.ndarray) -> list[shapely.Polygon]:
    """The connected areas of cells, from top to bottom; rounded first, so that neighbours share their corners."""
    merged = shapely.union_all(shapely.box(*np.round(boxes_N4, _DIGITS).T))
    areas = shapely.orient_polygons(shapely.get_parts(shapely.normalize(shapely.simplify(merged, 0))))
    return sorted(areas.tolist(), key=lambda area: (area.bounds[1], area.bounds[0], area.bounds[3], area.bounds[2]))
