"""Cluster labels on a slide: as a picture over its thumbnail, and as GeoJSON for QuPath; the record of a drawn map.

This module loads quickly; ``tissue_map`` classifies slides. Shape suffixes: N cells, 4 the sides of a cell (left, top,
right, bottom) in level-0 px, H and W the picture's height and width in px.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import shapely

from histoloom.atlas.maps.palette import Rgb, rgb
from histoloom.atlas.maps.tissue_groups import TissueGroups
from histoloom.names import Label
from histoloom.run.directory import read_json, write_json

_DIGITS = 2  # of a coordinate in level-0 px
_MAX_LINE = 3  # px of an outline
_TINT_OF_ONE = 0.5
_PALER = 0.35  # how far the thumbnail moves towards white under the boxes of one cluster


@dataclass(frozen=True)
class MapRecord:
    """``report/maps/SLIDE_ID.json``: what a drawn tissue map shows, or why it is missing.

    ``clusters`` is the fingerprint of the clustering, ``limit`` the most cells (``report.map_patches``), ``patches``
    the classified cells, ``drawn`` tells apart what was drawn of the same cells: the groups and their colours.
    """

    slide_id: str
    title: str = ""
    clusters: str = ""
    k: int = 0
    limit: int = 0
    patches: int = 0
    drawn: str = ""
    missing: str = ""

    @staticmethod
    def load(path: Path) -> MapRecord | None:
        """Read the file; None where there is none."""
        if not path.is_file():
            return None
        known, content = {field.name for field in fields(MapRecord)}, read_json(path)
        return MapRecord(**{key: value for key, value in content.items() if key in known})

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
    tint: float = 0.35,
) -> np.ndarray:
    """The thumbnail with each area of one label tinted and outlined in its colour: uint8 (H, W, 3).

    A negative label leaves the thumbnail as it is.

    The outline lies inside the area, with a thin white line around it: it shows on any tissue, and neighbours keep
    theirs apart. ``dimensions`` are the slide's (width, height) in level-0 px, ``tint`` is how far a cell moves the
    thumbnail towards its colour. A cell covers at least one pixel.
    """
    height, width = thumbnail_HW3.shape[:2]
    scale_4 = np.array([width / dimensions[0], height / dimensions[1]] * 2)
    pixels_N4 = np.clip(np.rint(boxes_N4 * scale_4).astype(int), 0, [width, height, width, height])
    label_HW = np.full((height, width), -1)
    for (left, top, right, bottom), label in zip(pixels_N4, labels_N, strict=True):
        label_HW[top : max(bottom, top + 1), left : max(right, left + 1)] = int(label)

    inside_HW, colour_HW3 = label_HW >= 0, np.array([*colours, (0, 0, 0)])[label_HW]
    tinted_HW3 = thumbnail_HW3 * (1 - tint) + colour_HW3 * tint
    image_HW3 = np.where(inside_HW[..., None], np.rint(tinted_HW3), thumbnail_HW3)

    # Cells too small for an outline are tinted alone.
    cell = float(np.median(pixels_N4[:, 2:] - pixels_N4[:, :2])) if len(pixels_N4) else 0.0
    line = min(_MAX_LINE, int(cell // 6))
    if line:
        depth_HW = _depth(label_HW, up_to=line + 1)
        image_HW3[inside_HW & (depth_HW <= line + 1)] = colour_HW3[inside_HW & (depth_HW <= line + 1)]
        image_HW3[inside_HW & (depth_HW == 1)] = 255
    return image_HW3.astype(np.uint8)


def _depth(label_HW: np.ndarray, *, up_to: int) -> np.ndarray:
    """How many steps each pixel lies inside its label's area: 1 at its edge; what lies deeper has ``up_to`` + 1.

    The picture's own border is no edge.
    """
    depth_HW = np.full(label_HW.shape, up_to + 1)
    for step in range(1, up_to + 1):
        padded = np.pad(label_HW, step, mode="edge")
        height, width = label_HW.shape
        for down in range(-step, step + 1):
            for right in {-step, step} if abs(down) < step else range(-step, step + 1):
                other_HW = padded[step + down : step + down + height, step + right : step + right + width]
                depth_HW[(other_HW != label_HW) & (depth_HW > step)] = step
    return depth_HW


def cluster_overlay(
    thumbnail_HW3: np.ndarray, *, boxes_N4: np.ndarray, dimensions: tuple[int, int], colour: Rgb
) -> np.ndarray:
    """A paler thumbnail with the patches of one cluster, ``boxes_N4``, in ``colour``: uint8 (H, W, 3).

    ``dimensions`` are the slide's (width, height) in level-0 px.
    """
    pale_HW3 = np.rint(thumbnail_HW3 * (1 - _PALER) + 255 * _PALER).astype(np.uint8)
    labels_N = np.zeros(len(boxes_N4), int)
    return overlay(
        pale_HW3, boxes_N4=boxes_N4, labels_N=labels_N, colours=[colour], dimensions=dimensions, tint=_TINT_OF_ONE
    )


def geojson(
    boxes_N4: np.ndarray,
    *,
    cells: TissueGroups,
    labels: Mapping[int, Label],
    metadata: Callable[[tuple[int, ...]], dict[str, str]] = lambda _clusters: {},
) -> str:
    """A FeatureCollection that QuPath (0.4 and later) opens: one annotation for each connected area of one group.

    ``cells``: the group of each cell; ``labels``: of the clusters, whose flags all areas of their group have. Cells
    that share a side are joined; holes stay holes; cells of no group have no area. ``metadata``: what else QuPath is to
    keep of an area of these clusters. Coordinates are those of ``boxes_N4``, px, to a hundredth.
    """
    features = []
    for place, group in enumerate(cells.groups):
        inside_N = cells.group_N == place
        if not inside_N.any():
            continue
        flags = sorted({labels[cluster].flag for cluster in group.clusters} - {""})
        kept = ({"flag": ", ".join(flags)} if flags else {}) | metadata(group.clusters)
        properties = {
            "objectType": "annotation",
            "classification": {"name": group.name, "color": list(rgb(group.colour))},
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
