"""The 2-D map of patches on the page: points in the clusters' colours, a thumbnail where the pointer is.

Without any script: points are elements, thumbnails one picture that the style sheet shows a part of. Shape suffixes: N
patches, K clusters, n neighbours, 2 the map's axes, H and W height and width in px.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from histoloom.atlas.maps.map_titles import TITLES

TILE, COLUMNS, QUALITY = 48, 40, 70
"""Of the picture that holds all thumbnails: px of one, thumbnails in a row, JPEG quality."""

FAR = 0.6
"""Beyond it a thumbnail opens to the left, or upwards, so that it stays on the page."""


@dataclass(frozen=True)
class Panel:
    """One map: its method, and an element for each patch."""

    method: str
    title: str
    points: Markup


@dataclass(frozen=True)
class MapRow:
    """A cluster in words: patches shown, share of patches' nearest neighbours in the same cluster, the next cluster.

    ``own`` is the share among the features themselves, ``in_maps`` in each map, ``chance`` the cluster's share of all
    patches; ``beside`` is the other cluster that neighbours are of most often, None where there is none.
    """

    cluster: int
    patches: int
    own: float
    in_maps: tuple[float, ...]
    chance: float
    beside: int | None


@dataclass(frozen=True)
class PatchMap:
    """All of the section: ``sprite`` is a data URI; ``features`` says what the maps are computed from."""

    n: int
    features: str
    sprite: str
    sheet: tuple[int, int]
    panels: tuple[Panel, ...]
    rows: tuple[MapRow, ...]


def patch_map(
    coordinates: Mapping[str, np.ndarray],
    *,
    labels_N: np.ndarray,
    near_Nn: Mapping[str, np.ndarray],
    thumbnails: Sequence[Image.Image],
    texts: Sequence[str],
    features: str,
) -> PatchMap:
    """The section of maps (N, 2) in 0..1 by method; ``near_Nn`` has neighbours by method and under ``features``.

    ``texts`` say of each patch where it is from, for those that the keyboard reaches.
    """
    sprite, sheet = sprite_of(thumbnails)
    panels = [
        Panel(method, TITLES[method], points(xy_N2, labels_N=labels_N, texts=texts))
        for method, xy_N2 in coordinates.items()
    ]
    rows = rows_of(labels_N, own_Nn=near_Nn["features"], in_maps=[near_Nn[method] for method in coordinates])
    return PatchMap(len(labels_N), features, sprite, sheet, tuple(panels), tuple(rows))


def thumbnail(image_HW3: np.ndarray) -> Image.Image:
    """A patch at ``TILE`` px."""
    return Image.fromarray(image_HW3).resize((TILE, TILE), Image.Resampling.LANCZOS)


def sprite_of(thumbnails: Sequence[Image.Image]) -> tuple[str, tuple[int, int]]:
    """All thumbnails in one JPEG, row by row, as a data URI, and its (width, height) in px.

    A tile is a multiple of JPEG's 16-px blocks, so that none bleeds into another.
    """
    rows = -(-len(thumbnails) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * TILE, rows * TILE))
    for number, tile in enumerate(thumbnails):
        sheet.paste(tile, _place(number))
    data = io.BytesIO()
    sheet.save(data, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii"), sheet.size


def _place(number: int) -> tuple[int, int]:
    return TILE * (number % COLUMNS), TILE * (number // COLUMNS)


def points(xy_N2: np.ndarray, *, labels_N: np.ndarray, texts: Sequence[str]) -> Markup:
    """An element for each patch; the keyboard reaches the most central of each cluster, which says what it is."""
    central = {centre: cluster for cluster, centre in centres(xy_N2, labels_N=labels_N).items()}
    others = [row for row in range(len(xy_N2)) if row not in central]
    found = [_point(xy_N2[row], row=row, cluster=int(labels_N[row])) for row in others]
    for row, cluster in sorted(central.items(), key=lambda item: item[1]):
        text = f"Cluster {cluster}, central patch: {texts[row]}"
        found.append(_point(xy_N2[row], row=row, cluster=cluster, text=text))
    return Markup("").join(found)


def _point(xy_2: np.ndarray, *, row: int, cluster: int, text: str = "") -> Markup:
    x, y = float(xy_2[0]), 1 - float(xy_2[1])
    left, top = _place(row)
    sides = (" r" if x > FAR else "") + (" b" if y > FAR else "")
    reached = Markup(' tabindex="0" role="img" aria-label="{}"').format(escape(text)) if text else ""
    return Markup('<i class="c{}{}" style="left:{:.1f}%;top:{:.1f}%;--p:-{}px -{}px"{}></i>').format(
        cluster, sides, 100 * x, 100 * y, left, top, reached
    )


def centres(xy_N2: np.ndarray, *, labels_N: np.ndarray) -> dict[int, int]:
    """The row nearest to the median of each cluster that has patches."""
    found = {}
    for cluster in np.unique(labels_N):
        rows = np.flatnonzero(labels_N == cluster)
        distance = np.linalg.norm(xy_N2[rows] - np.median(xy_N2[rows], axis=0), axis=1)
        found[int(cluster)] = int(rows[distance.argmin()])
    return found


def rows_of(labels_N: np.ndarray, *, own_Nn: np.ndarray, in_maps: Sequence[np.ndarray]) -> list[MapRow]:
    """The maps in words, a row for each cluster that has patches."""
    rows = []
    for cluster in np.unique(labels_N):
        inside = labels_N == cluster
        beside = labels_N[own_Nn[inside]].ravel()
        others = np.bincount(beside[beside != cluster], minlength=1)
        rows.append(
            MapRow(
                cluster=int(cluster),
                patches=int(inside.sum()),
                own=float((beside == cluster).mean()),
                in_maps=tuple(float((labels_N[near_Nn[inside]] == cluster).mean()) for near_Nn in in_maps),
                chance=float(inside.mean()),
                beside=int(others.argmax()) if others.any() else None,
            )
        )
    return rows
