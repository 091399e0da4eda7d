"""Tissue maps: a slide classified on a grid, which shows the cluster of each place.

Shape suffixes: N cells, 4 the sides of a cell (left, top, right, bottom) in level-0 px.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from histoloom.atlas.maps.corrections import MapSource, kept_map
from histoloom.atlas.maps.overlay import geojson, overlay
from histoloom.atlas.maps.palette import rgb
from histoloom.atlas.maps.tissue_groups import TissueGroups, group_cells
from histoloom.clustering.classifier import Classifier
from histoloom.clustering.results import Decision
from histoloom.config import MPP_LIMITS, Config
from histoloom.errors import UserError
from histoloom.names import clustering_of, current_labels
from histoloom.names.corrections import current_corrections
from histoloom.run.directory import Run, disk_errors_explained, replacing, write_text
from histoloom.run.own_output import png_text
from histoloom.slides.entries import SlideError
from histoloom.slides.inventory.pseudonyms import real_file
from histoloom.slides.patch_set import PatchSet, SlideRow
from histoloom.slides.patches.grid import Grid, batches, grid
from histoloom.slides.patches.surroundings import fields_of, image_side, read_fields
from histoloom.slides.readers.open import open_slide
from histoloom.slides.readers.scale import Scale, decide
from histoloom.slides.stain.normalise import SlideStains
from histoloom.slides.tissue.kind import not_he
from histoloom.training.devices import accelerator

logger = logging.getLogger("histoloom")

Classify = Callable[[np.ndarray, np.ndarray | None], Mapping[int, np.ndarray]]
"""From patches, uint8 (n, size, size, 3), and the fields about them, to their clusters (n,) under each k."""

REFINED_CELLS = 900
"""Cells up to which a grid is refined beyond one patch a cell."""

CLASSIFIER_STAGES = ("autoencoder", "latents", "clusters")
"""The stages whose folders classify a patch."""

_REFINEMENTS = (4, 3, 2)
_BATCH = 64
_THUMBNAIL_SIDE = 1024


@dataclass(frozen=True)
class SlideMap:
    """The clusters of a slide's cells under each k.

    ``dimensions`` are (width, height) in level-0 px; ``thumbnail`` is uint8 (h, w, 3); ``origin`` is the level-0
    (x, y) from which QuPath counts.
    """

    boxes_N4: np.ndarray
    labels: Mapping[int, np.ndarray]
    dimensions: tuple[int, int]
    thumbnail: np.ndarray
    origin: tuple[int, int] = (0, 0)

    def picture(self, cells: TissueGroups) -> Image.Image:
        """The groups of the cells in their colours over the slide's thumbnail."""
        image_HW3 = overlay(
            self.thumbnail,
            boxes_N4=self.boxes_N4,
            labels_N=cells.group_N,
            colours=[rgb(group.colour) for group in cells.groups],
            dimensions=self.dimensions,
        )
        return Image.fromarray(image_HW3)

    def groups(self, run: Path, *, k: int, patches: Path, slide_id: str | None) -> TissueGroups:
        """The group of each cell as names and corrections say now; None: a slide that is not the run's.

        ``patches``: the folder of that stage.
        """
        corrections = current_corrections(run, k=k) if slide_id is not None else {}
        patch_boxes = {}
        if corrections:
            table = PatchSet.open(patches).columns("patch_id", "slide_id", "x", "y", "extent")
            table = table[table["slide_id"] == slide_id]
            places = table[["x", "y", "extent"]].to_numpy(float).tolist()
            patch_boxes = {
                str(patch): (x, y, x + extent, y + extent)
                for patch, (x, y, extent) in zip(table["patch_id"], places, strict=True)
            }
        return group_cells(
            self.labels[k],
            boxes_N4=self.boxes_N4,
            labels=current_labels(run, k=k),
            corrections=corrections,
            patch_boxes=patch_boxes,
        )

    def save_cells(self, path: Path, *, k: int) -> None:
        """Write the cells of one k (NPZ), so that the map can be drawn in other colours without slide and networks."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                boxes_N4=self.boxes_N4,
                labels_N=self.labels[k].astype(np.uint16),
                dimensions=np.array(self.dimensions, dtype=np.int64),
            )

    @staticmethod
    def load_cells(path: Path, *, k: int, thumbnail: np.ndarray) -> SlideMap:
        """Read what ``save_cells`` wrote, as a map of ``k`` clusters over ``thumbnail``."""
        with np.load(path) as arrays:
            width, height = (int(side) for side in arrays["dimensions"])
            return SlideMap(arrays["boxes_N4"], {k: arrays["labels_N"]}, (width, height), thumbnail)


def classify_slide(
    path: Path,
    *,
    classify: Classify,
    size: int,
    mpp: float,
    limit: int,
    surroundings: bool = False,
    scale: Scale | None = None,
    default_mpp: float | None = None,
    stains: SlideStains | None = None,
    name: str | None = None,
) -> SlideMap:
    """Classify at most ``limit`` patches of ``size`` px at ``mpp`` um/px on a grid over the slide at ``path``.

    ``surroundings``: whether ``classify`` gets the fields about the patches as well, or None in their place.
    ``scale`` is what is known of this slide and goes before its file; ``default_mpp`` goes before a guess. ``stains``
    are those of the run, None where it did not normalise stain; ``name`` is the slide's name there, None for a slide
    that the run did not use. Raises ``SlideError`` where the slide cannot be read, does not say its um/px, or is
    smaller than a patch.
    """
    with open_slide(path) as slide:
        slide.scale = decide(slide.scale, given=scale, default=default_mpp)
        cells = refined(grid(slide, size=size, mpp=mpp, limit=limit), dimensions=slide.dimensions, limit=limit)
        recolour = None if stains is None else stains.of_slide(slide, name=name)
        fields_N3 = fields_of(cells.x, cells.y, extent=cells.extent, dimensions=slide.dimensions)
        fields = read_fields(slide, fields_N3, side=image_side(size))
        parts: dict[int, list[np.ndarray]] = {}
        for patches in batches(slide, cells=cells, size=size, batch=_BATCH):
            images = [patches, *([np.stack(list(islice(fields, len(patches))))] if surroundings else [])]
            if recolour is not None:
                images = [recolour(part) for part in images]
            for k, labels_n in classify(images[0], images[1] if surroundings else None).items():
                parts.setdefault(k, []).append(labels_n)
        return SlideMap(
            boxes_N4=boxes(cells, dimensions=slide.dimensions),
            labels={k: np.concatenate(labels) for k, labels in parts.items()},
            dimensions=slide.dimensions,
            thumbnail=slide.thumbnail(_THUMBNAIL_SIDE),
            origin=slide.origin,
        )


def refined(cells: Grid, *, dimensions: tuple[int, int], limit: int) -> Grid:
    """The grid with more rows and columns, of overlapping patches, where a slide is so small that it has few.

    The result has at most ``REFINED_CELLS`` cells, or as many as ``cells`` has, and never more than ``limit``.
    """

    def corners(length: int, *, count: int) -> np.ndarray:
        """Corners of patches about the middles of ``count`` equal cells, moved inward so that none leaves the slide."""
        middles = (np.arange(count) + 0.5) * length / count
        return np.clip(middles - cells.extent / 2, 0.0, max(0.0, length - cells.extent))

    for factor in _REFINEMENTS:
        if len(cells) * factor**2 <= min(limit, REFINED_CELLS):
            rows, columns = cells.rows * factor, cells.columns * factor
            x, y = corners(dimensions[0], count=columns), corners(dimensions[1], count=rows)
            return Grid(rows, columns, np.tile(x, rows), np.repeat(y, columns), cells.extent)
    return cells


def boxes(cells: Grid, *, dimensions: tuple[int, int]) -> np.ndarray:
    """The parts of the slide that the cells stand for, (N, 4), row by row; they tile it without gaps."""
    x_edges = np.linspace(0, dimensions[0], cells.columns + 1)
    y_edges = np.linspace(0, dimensions[1], cells.rows + 1)
    rows, columns = (index.ravel() for index in np.indices((cells.rows, cells.columns)))
    return np.stack([x_edges[columns], y_edges[rows], x_edges[columns + 1], y_edges[rows + 1]], axis=1)


def map_slide(run: Path, slide: Path, *, out: Path, k: int | None, mpp: float | None) -> None:
    """Classify a slide with a run's clusters and write GeoJSON for QuPath, and a picture beside it (``.png``).

    Places in patches that an expert has corrected show the correction. The slide's stain is normalised as the run's
    slides were. ``k`` is None for the chosen one. ``mpp`` is the slide's um/px at level 0. If it is None, a slide of
    the run has the value that the run uses; any other slide has that of its file, else the run's ``slides.mpp``. Raises
    ``UserError``.
    """
    opened = Run.open(run)
    config, sweep = opened.config, opened.config.clusters.k
    if k is not None and k not in sweep:
        raise UserError(f"k = {k} is not in this run's sweep; allowed: {', '.join(map(str, sweep))}")
    if mpp is not None and not MPP_LIMITS[0] <= mpp <= MPP_LIMITS[1]:
        raise UserError(f"--mpp must be um/px from {MPP_LIMITS[0]:g} to {MPP_LIMITS[1]:g}, got {mpp:g}")
    if out.suffix not in {".geojson", ".json"}:
        raise UserError(f"--out wants a name that ends in .geojson, got {out.name}")
    picture = out.with_suffix(".png")
    if picture.exists() and (not out.exists() or picture.resolve() == slide.resolve()):
        raise UserError(f"{picture} exists, and the map's picture would replace it; give another name with --out")
    classifier = load_classifier(config, {stage: opened.require(stage) for stage in CLASSIFIER_STAGES})
    k = k or Decision.load(opened.folder("clusters")).k

    patches = opened.folder("patches")
    known = run_slide(slide, patches=patches, paths=config.slides.paths)
    scale = None if known is None or known.mpp is None else Scale(known.mpp, known.mpp_source)
    if mpp is not None:
        if scale is not None and not math.isclose(mpp, scale.mpp):
            logger.warning(
                "%s: mapped at --mpp %g, but the run uses %g um/px (%s) for this slide, so that its report shows "
                "another scale",
                slide.name,
                mpp,
                scale.mpp,
                scale.source,
            )
        scale = Scale(mpp, "--mpp")
    try:
        slide_map = classify_slide(
            slide,
            classify=classifier.labels,
            surroundings=classifier.features.with_surroundings,
            size=config.patches.size,
            mpp=config.patches.mpp,
            limit=config.report.map_patches,
            scale=scale,
            default_mpp=config.slides.mpp,
            stains=run_stains(patches, config=config),
            name=None if known is None else known.slide,
        )
    except SlideError as error:
        raise UserError(f"{slide}: {error}") from error

    if reason := not_he(slide_map.thumbnail):
        logger.warning("%s does not look like haematoxylin and eosin (%s): its map may mean little", slide.name, reason)
    slide_id = None if known is None else known.slide_id
    cells = slide_map.groups(run, k=k, patches=patches, slide_id=slide_id)
    boxes_N4 = slide_map.boxes_N4 - np.array([*slide_map.origin, *slide_map.origin])

    def source(clusters: tuple[int, ...]) -> dict[str, str]:
        if known is None:
            return {}
        of_map = MapSource(known.slide_id, k, clusters, slide_map.origin, clustering_of(run))
        return {MapSource.KEY: str(of_map)}

    text = geojson(boxes_N4, cells=cells, labels=current_labels(run, k=k), metadata=source)
    if known is not None:
        kept = kept_map(run, slide=known.slide_id, k=k)
        with disk_errors_explained(kept.parent):
            kept.parent.mkdir(exist_ok=True)
            write_text(kept, text)
    with disk_errors_explained(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
        write_png(picture, slide_map.picture(cells))


def load_classifier(config: Config, inputs: Mapping[str, Path]) -> Classifier:
    """The networks in the folders of ``CLASSIFIER_STAGES``, on the device of ``config.runtime``."""
    return Classifier.load(
        autoencoder=inputs["autoencoder"],
        latents=inputs["latents"],
        clusters=inputs["clusters"],
        device=accelerator(config.runtime).device,
    )


def run_slide(slide: Path, *, patches: Path, paths: Sequence[str] = ()) -> SlideRow | None:
    """The usable slide of the run whose stage ``patches`` is in this folder with the file ``slide``, or None.

    ``paths``: where the run's slides are looked for if they have moved.
    """
    file = slide.resolve()
    for row in SlideRow.load(patches):
        with suppress(SlideError):  # the slide of a private run whose names are not known here
            if row.usable and real_file(row.file, paths=paths).resolve() == file:
                return row
    return None


def run_stains(patches: Path, *, config: Config) -> SlideStains | None:
    """The stains of the run whose stage ``patches`` is in this folder; None where it did not normalise stain."""
    return None if config.patches.stain == "none" else SlideStains.load(patches)


def write_png(path: Path, image: Image.Image) -> None:
    """Write a PNG in one step."""
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=png_text())
