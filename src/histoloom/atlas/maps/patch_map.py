"""The 2-D map of patches: its file ``report/embedding.json``, and its section of the report.

The section needs no script: points are elements, and the thumbnails are one picture (a sprite) of which the style
sheet shows a part. This module loads quickly; ``embedding`` computes the maps. Shape suffixes: N patches, n
neighbours, 2 the map's axes, H and W height and width in px.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from histoloom.run.directory import read_json, write_json

METHOD_TITLES = {"pca": "Principal components", "tsne": "t-SNE", "umap": "UMAP"}
"""The names of the maps by method."""

FEATURE_TITLES = {
    "pooled": "means and deviations of the autoencoder's latents",
    "codes": "histograms of the autoencoder's codes",
    "flat": "the autoencoder's latents, place by place",
    "same": "the features that the clusters are made of",
    "softmax": "softmax over the latents' channels, averaged over positions",
}
"""What the maps are computed from, by ``clusters.validity_features``."""

TILE, COLUMNS, QUALITY = 48, 40, 70
"""The sprite: px of a thumbnail, thumbnails in a row, JPEG quality."""

FAR = 0.6
"""Beyond this place a thumbnail opens to the left, or upwards, so that it stays on the page."""


@dataclass(frozen=True)
class Embedding:
    """``embedding.json``: the patches on the 2-D maps and their places. It does not depend on k or names.

    ``inputs`` is what the maps depend on (fingerprints and settings), ``maps`` the places (N, 2) in 0..1 by method,
    ``neighbours_Nn`` the rows of each patch's nearest others among the features.
    """

    inputs: Mapping[str, object]
    patch_ids: Sequence[str]
    maps: Mapping[str, np.ndarray]
    neighbours_Nn: np.ndarray

    @staticmethod
    def load(path: Path) -> Embedding | None:
        """Read the file; None where there is none."""
        if not path.is_file():
            return None
        content = read_json(path)
        maps = {method: np.asarray(xy_N2) for method, xy_N2 in content["maps"].items()}
        return Embedding(content["identity"], content["patch_ids"], maps, np.asarray(content["neighbours"]))

    def save(self, path: Path) -> None:
        """Write the file in one step."""
        maps = {method: xy_N2.tolist() for method, xy_N2 in self.maps.items()}
        neighbours = self.neighbours_Nn.tolist()
        content = {"identity": self.inputs, "patch_ids": list(self.patch_ids), "maps": maps, "neighbours": neighbours}
        write_json(path, content)


@dataclass(frozen=True)
class Panel:
    """One map: its title, and an element for each patch."""

    title: str
    points: Markup


@dataclass(frozen=True)
class NeighbourShares:
    """How far a cluster's patches lie together: shares (0..1) of their nearest neighbours in the same cluster.

    ``in_features`` is the share among the features themselves, ``in_maps`` in each map; ``by_chance`` is the cluster's
    share of all patches. ``nearest_cluster`` is the other cluster that most neighbours belong to, None where all
    belong to the same one.
    """

    cluster: int
    patches: int
    in_features: float
    in_maps: tuple[float, ...]
    by_chance: float
    nearest_cluster: int | None


@dataclass(frozen=True)
class PatchMap:
    """The report's section: ``n`` patches, what the maps are computed from, and the sprite as a data URI."""

    n: int
    features: str
    sprite: str
    panels: tuple[Panel, ...]
    rows: tuple[NeighbourShares, ...]


def patch_map(
    embedding: Embedding,
    *,
    labels_N: np.ndarray,
    map_neighbours: Mapping[str, np.ndarray],
    thumbnails: Sequence[Image.Image],
    texts: Sequence[str],
    features: str,
    classes: Sequence[str] = (),
) -> PatchMap:
    """The section of the report. ``map_neighbours`` are the nearest neighbours (N, n) in each map, by method.

    ``texts`` say of which group each patch is, and where it is from; the keyboard reaches some of them. ``features``
    names what the maps are computed from. ``classes``: further classes of each patch's element,
    which give it other colours.
    """
    sprite, _ = sprite_of(thumbnails)
    panels = [
        Panel(METHOD_TITLES[method], points(xy_N2, labels_N=labels_N, texts=texts, classes=classes))
        for method, xy_N2 in embedding.maps.items()
    ]
    in_maps = [map_neighbours[method] for method in embedding.maps]
    rows = neighbour_shares(labels_N, neighbours_Nn=embedding.neighbours_Nn, map_neighbours=in_maps)
    return PatchMap(len(labels_N), features, sprite, tuple(panels), tuple(rows))


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
        sheet.paste(tile, _corner(number))
    data = io.BytesIO()
    sheet.save(data, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii"), sheet.size


def _corner(number: int) -> tuple[int, int]:
    """The left and top of a thumbnail in the sprite, px."""
    return TILE * (number % COLUMNS), TILE * (number // COLUMNS)


def points(xy_N2: np.ndarray, *, labels_N: np.ndarray, texts: Sequence[str], classes: Sequence[str] = ()) -> Markup:
    """An element for each patch. The keyboard reaches the most central patch of each group, and reads its text."""
    central = {row: cluster for cluster, row in central_patches(xy_N2, labels_N=labels_N).items()}
    others = [row for row in range(len(xy_N2)) if row not in central]
    elements = []
    for row in [*others, *sorted(central, key=lambda row: central[row])]:
        x, y = float(xy_N2[row, 0]), 1 - float(xy_N2[row, 1])
        sides = (" r" if x > FAR else "") + (" b" if y > FAR else "") + (f" {classes[row]}" if classes else "")
        focus = ""
        if row in central:
            text = f"Central patch of {texts[row]}"
            focus = Markup(' tabindex="0" role="img" aria-label="{}"').format(escape(text))
        element = Markup('<i class="c{}{}" style="left:{:.1f}%;top:{:.1f}%;--p:-{}px -{}px"{}></i>')
        elements.append(element.format(int(labels_N[row]), sides, 100 * x, 100 * y, *_corner(row), focus))
    return Markup("").join(elements)


def central_patches(xy_N2: np.ndarray, *, labels_N: np.ndarray) -> dict[int, int]:
    """The row nearest to the median of each cluster or group that has patches, by its number; -1 is none."""
    central = {}
    for cluster in np.unique(labels_N[labels_N >= 0]):
        rows = np.flatnonzero(labels_N == cluster)
        distance = np.linalg.norm(xy_N2[rows] - np.median(xy_N2[rows], axis=0), axis=1)
        central[int(cluster)] = int(rows[distance.argmin()])
    return central


def neighbour_shares(
    labels_N: np.ndarray, *, neighbours_Nn: np.ndarray, map_neighbours: Sequence[np.ndarray]
) -> list[NeighbourShares]:
    """A row for each cluster or group that has patches; -1 is none.

    The neighbours (N, n) are those in the features and in each map.
    """
    rows = []
    for cluster in np.unique(labels_N[labels_N >= 0]):
        inside = labels_N == cluster
        labels = labels_N[neighbours_Nn[inside]].ravel()
        others = np.bincount(labels[(labels != cluster) & (labels >= 0)], minlength=1)
        rows.append(
            NeighbourShares(
                cluster=int(cluster),
                patches=int(inside.sum()),
                in_features=float((labels == cluster).mean()),
                in_maps=tuple(float((labels_N[near_Nn[inside]] == cluster).mean()) for near_Nn in map_neighbours),
                by_chance=float(inside.mean()),
                nearest_cluster=int(others.argmax()) if others.any() else None,
            )
        )
    return rows
