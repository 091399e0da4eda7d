"""A slide classified on a grid: which cluster lies where.

Shape suffixes: N cells, 4 the sides of a cell (left, top, right, bottom) in level-0 px.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from histoloom.atlas.maps import geojson
from histoloom.atlas.maps.cluster_colours import cluster_colours
from histoloom.atlas.maps.palette import Rgb
from histoloom.clustering.classifier import Classifier
from histoloom.config import Config
from histoloom.errors import UserError
from histoloom.names import current_labels
from histoloom.run.directory import Run, disk_errors_explained, read_json, replacing, write_text
from histoloom.slides.entries import OK, SlideEntry, SlideError
from histoloom.slides.patches.grid import Grid, batches, grid
from histoloom.slides.readers.open import Slide, open_slide
from histoloom.slides.stain.per_slide import SlideStains
from histoloom.training.devices import accelerator

Labels = Mapping[int, np.ndarray]
Label = Callable[[np.ndarray], Labels]
"""From patches, uint8 (n, size, size, 3), to the labels (n,) under each k."""

DETAILED = 900
"""Cells up to which a grid is refined beyond one patch a cell."""

NETWORKS = ("autoencoder", "latents", "clusters")
"""The stages whose folders classify a patch."""

_REFINEMENTS = (4, 3, 2)
_BATCH = 64
_THUMBNAIL_SIDE = 1024


@dataclass(frozen=True)
class SlideMap:
    """The classes of a slide's cells under each k.

    ``dimensions`` are (width, height) in level-0 px; ``thumbnail`` is uint8 (h, w, 3); ``origin`` is the level-0
    (x, y) from which QuPath counts.
    """

    boxes_N4: np.ndarray
    labels: Labels
    dimensions: tuple[int, int]
    thumbnail: np.ndarray
    origin: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Stains:
    """A run's stains, and the name in that run of the slide that is mapped; None for one that it has not seen."""

    known: SlideStains
    slide: str | None = None

    def normalised(self, label: Label, *, slide: Slide) -> Label:
        """``label`` of an open slide's patches in the run's reference stain."""
        recolour = self.known.of_slide(slide, name=self.slide)
        return label if recolour is None else lambda patches: label(recolour(patches))


def classify_slide(
    path: Path,
    *,
    label: Label,
    size: int,
    mpp: float,
    limit: int,
    source_mpp: float | None = None,
    stains: Stains | None = None,
) -> SlideMap:
    """Classify at most ``limit`` patches of ``size`` px at ``mpp`` um/px on a grid over the slide at ``path``.

    ``source_mpp``: um/px of the slide at level 0, which counts more than what the file says. ``stains``: how the
    run normalised stain, None for not. Raises
    ``SlideError`` where the slide cannot be read, does not say its um/px, or is smaller than a patch.
    """
    entry = SlideEntry(path.stem, path, patient="", slide="", mpp=source_mpp, mpp_source="given")
    with open_slide(entry) as slide:
        cells = grid(slide, size=size, mpp=mpp, limit=limit)
        cells = refined(cells, dimensions=slide.dimensions, limit=limit)
        label = label if stains is None else stains.normalised(label, slide=slide)
        parts: dict[int, list[np.ndarray]] = {}
        for patches in batches(slide, cells=cells, size=size, batch=_BATCH):
            for k, labels_N in label(patches).items():
                parts.setdefault(k, []).append(labels_N)
        return SlideMap(
            boxes_N4=boxes(cells, dimensions=slide.dimensions),
            labels={k: np.concatenate(found) for k, found in parts.items()},
            dimensions=slide.dimensions,
            thumbnail=slide.thumbnail(_THUMBNAIL_SIDE),
            origin=slide.origin,
        )


def refined(cells: Grid, *, dimensions: tuple[int, int], limit: int) -> Grid:
    """The grid with more rows and columns, of overlapping patches, where a slide is so small that it has few.

    The result has at most ``DETAILED`` cells, or as many as ``cells`` has, and never more than ``limit``.
    """
    for factor in _REFINEMENTS:
        if len(cells) * factor**2 <= min(limit, DETAILED):
            rows, columns = cells.rows * factor, cells.columns * factor
            x = _corners(dimensions[0], extent=cells.extent, count=columns)
            y = _corners(dimensions[1], extent=cells.extent, count=rows)
            return Grid(rows, columns, np.tile(x, rows), np.repeat(y, columns), cells.extent)
    return cells


def boxes(cells: Grid, *, dimensions: tuple[int, int]) -> np.ndarray:
    """The parts of the slide that the cells stand for, (N, 4), row by row; they tile it without gaps."""
    x_edges = np.linspace(0, dimensions[0], cells.columns + 1)
    y_edges = np.linspace(0, dimensions[1], cells.rows + 1)
    rows, columns = (index.ravel() for index in np.indices((cells.rows, cells.columns)))
    return np.stack([x_edges[columns], y_edges[rows], x_edges[columns + 1], y_edges[rows + 1]], axis=1)


def _corners(length: int, *, extent: float, count: int) -> np.ndarray:
    """Corners of patches about the middles of ``count`` equal cells, moved inward where they would stand over."""
    middles = (np.arange(count) + 0.5) * length / count
    return np.clip(middles - extent / 2, 0.0, max(0.0, length - extent))


def overlaid(found: SlideMap, *, k: int, colours: Sequence[Rgb]) -> np.ndarray:
    """The tissue map of ``k`` clusters in their ``colours`` over the slide's thumbnail, uint8 (h, w, 3)."""
    layer = geojson.overlay(
        found.boxes_N4,
        labels_N=found.labels[k],
        colours=colours,
        dimensions=found.dimensions,
        shape=(found.thumbnail.shape[0], found.thumbnail.shape[1]),
    )
    return geojson.blend(found.thumbnail, layer_HW4=layer)


def map_slide(run: Path, slide: Path, *, out: Path, k: int | None, mpp: float | None) -> None:
    """Classify a slide with a run's clusters and write GeoJSON for QuPath, and a picture beside it (``.png``).

    Its stain is normalised as the run's slides were. ``k``: None for the chosen one. ``mpp``: the slide's um/px at
    level 0; None for what the file says. Raises ``UserError``.
    """
    opened = Run.open(run)
    sweep = opened.config.clusters.k
    if k is not None and k not in sweep:
        raise UserError(f"k = {k} is not in this run's sweep; allowed: {', '.join(map(str, sweep))}")
    if out.suffix not in {".geojson", ".json"}:
        raise UserError(f"--out wants a name that ends in .geojson, got {out.name}")
    classifier = load_classifier(opened.config, {stage: opened.require(stage) for stage in NETWORKS})
    k = k or chosen_k(opened.folder("clusters"))
    config = opened.config
    try:
        found = classify_slide(
            slide,
            label=classifier.labels,
            size=config.patches.size,
            mpp=config.patches.mpp,
            limit=config.report.map_patches,
            source_mpp=mpp,
            stains=stains_of(opened.folder("patches"), config=config, file=slide),
        )
    except SlideError as error:
        raise UserError(f"{slide}: {error}") from error
    labels = current_labels(run, k=k)
    colours = cluster_colours(labels, k=k)
    boxes_N4 = found.boxes_N4 - np.array([*found.origin, *found.origin])
    drawn = geojson.geojson(
        boxes_N4,
        labels_N=found.labels[k],
        names={cluster: label.name for cluster, label in labels.items()},
        colours=colours,
        flags={cluster: label.flag for cluster, label in labels.items()},
    )
    with disk_errors_explained(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, json.dumps(drawn, ensure_ascii=False))
        write_picture(out.with_suffix(".png"), overlaid(found, k=k, colours=colours))


def stains_of(patches: Path, *, config: Config, file: Path) -> Stains | None:
    """How the run whose stage ``patches`` is given normalised stain, for the slide ``file``; None where it did not."""
    if config.patches.stain == "none":
        return None
    slides = pd.read_parquet(patches / "slides.parquet", columns=["file", "slide", "status"])
    same = slides[(slides["file"] == str(file.resolve())) & (slides["status"] == OK)]
    return Stains(SlideStains.read(patches / "stain.json"), None if same.empty else str(same["slide"].iloc[0]))


def load_classifier(config: Config, inputs: Mapping[str, Path]) -> Classifier:
    """The networks in the folders of ``NETWORKS``, on the device of ``config.runtime``."""
    return Classifier.load(
        autoencoder=inputs["autoencoder"],
        latents=inputs["latents"],
        clusters=inputs["clusters"],
        device=accelerator(config.runtime).device,
    )


def chosen_k(clusters: Path) -> int:
    """The k that the stage ``clusters`` chose."""
    return int(read_json(clusters / "choice.json")["k"])


def write_picture(path: Path, image: np.ndarray) -> None:
    """Write a PNG, in one step."""
    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")
