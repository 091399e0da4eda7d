"""Dense predictions of the clusterer: the clusters of a grid of places in each patch, read on the slides.

The cluster of a place is that of the patch about it, as in a tissue map. So these labels are the run's own, and nobody
has drawn them. Shapes: N patches, S values of k, G x G places of a patch, P = G * G.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from histoloom.clustering.classifier import Classifier
from histoloom.clustering.features.base import ImagesUnsupported
from histoloom.errors import UserError
from histoloom.processes import is_main_process
from histoloom.progress import meter
from histoloom.run.directory import Artifact, read_json, write_json
from histoloom.run.row_file import RowFile
from histoloom.run.stage import StageContext
from histoloom.slides.entries import SlideError
from histoloom.slides.inventory.pseudonyms import public_reason, real_file
from histoloom.slides.patch_set import PatchSet, SlideRow
from histoloom.slides.patches.surroundings import fields_of, image_side
from histoloom.slides.readers.base import Slide
from histoloom.slides.readers.open import open_slide
from histoloom.slides.stain.normalise import SlideStains
from histoloom.training import distributed
from histoloom.training.devices import accelerator

PLACES = 4
"""places along a side of a patch, G"""
FILE = "dense_labels.npy"
MARKER = "dense_labels.json"
CHUNK = 16
"""patches whose places are classified at once, and after which the work is kept"""


def dense_labels(context: StageContext, *, rows: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    """The clusters of the places of the patches ``rows``, under each of ``ks``, int16 (N, S, G, G).

    The main process computes them, in its stage's folder, where a killed run continues; others read them there. Those
    of the last training with the same clusters are taken over. ``UserError`` where a slide is not at hand.
    """
    folder = distributed.shared_path(context.out)
    if is_main_process() and not _is_whole(folder, count=len(rows)):
        last = context.run / "diffusion"
        trained, clusters = Artifact.read(last), Artifact.read(context.inputs["clusters"])
        same_clusters = (
            trained is not None and clusters is not None and trained.inputs["clusters"] == clusters.fingerprint
        )
        if same_clusters and _is_whole(last, count=len(rows)):
            context.say("maps of conditions: those of the last training, whose clusters are the same")
            for name in (FILE, MARKER):
                (folder / name).write_bytes((last / name).read_bytes())
        else:
            _compute(context, rows=rows, ks=ks)
    accelerator(context.config.runtime).wait_for_everyone()
    return RowFile.open(folder / FILE)[:]


def _is_whole(folder: Path, *, count: int) -> bool:
    marker = folder / MARKER
    return marker.is_file() and read_json(marker)["rows"] == count


def _compute(context: StageContext, *, rows: np.ndarray, ks: Sequence[int]) -> None:
    """Fill the file, a chunk of patches after the other."""
    out, config = context.out, context.config
    try:
        classifier = Classifier.load(
            autoencoder=context.inputs["autoencoder"],
            latents=context.inputs["latents"],
            clusters=context.inputs["clusters"],
            device=accelerator(config.runtime).device,
        )
    except ImagesUnsupported as error:
        raise UserError(
            "clusters of features from files have no maps of conditions: set diffusion.condition_maps=false"
        ) from error
    folder = context.inputs["patches"]
    patches, slides = PatchSet.open(folder), {slide.slide_id: slide for slide in SlideRow.load(folder)}
    table = patches.columns("slide_id", "x", "y", "extent", rows=rows)
    stains = None if config.patches.stain == "none" else SlideStains.load(folder)
    done = read_json(out / MARKER)["rows"] if (out / MARKER).is_file() else 0
    shape = (len(rows), len(ks), PLACES, PLACES)
    target = (
        RowFile.open(out / FILE, writable=True) if done else RowFile.create(out / FILE, shape=shape, dtype=np.int16)
    )

    with meter("clusters of places in patches", total=len(rows), done=done) as progress:
        ids = table["slide_id"].astype(str).to_numpy()
        starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])  # of rows that follow one another on a slide
        for first, last in zip(starts, [*starts[1:], len(rows)], strict=True):
            if last <= done:
                continue
            info = slides[ids[first]]
            with _opened(info, paths=config.slides.paths) as slide:
                recolour = None if stains is None else stains.of_slide(slide, name=info.slide)
                for start in range(max(first, done), last, CHUNK):
                    part = table.iloc[start : min(start + CHUNK, last)]
                    corners = part[["x", "y", "extent"]].to_numpy(float)
                    squares = [_squares_about(slide, x=x, y=y, extent=extent) for x, y, extent in corners.tolist()]
                    pictures = [np.concatenate([_cut(slide, one, size=patches.size) for one, _ in squares])]
                    if classifier.features.with_surroundings:
                        side = image_side(patches.size)
                        pictures.append(np.concatenate([_cut(slide, around, size=side) for _, around in squares]))
                    if recolour is not None:
                        pictures = [recolour(images) for images in pictures]
                    labels = classifier.labels(*pictures)
                    labels_NSGG = np.stack([labels[k].reshape(-1, PLACES, PLACES) for k in ks], axis=1)
                    target[start : start + len(part)] = labels_NSGG.astype(np.int16)
                    target.flush()
                    write_json(out / MARKER, {"rows": start + len(part)})
                    progress.advance(len(part))


@contextmanager
def _opened(info: SlideRow, *, paths: Sequence[str]) -> Iterator[Slide]:
    """The run's slide; ``UserError`` where it is not at hand."""
    try:
        with open_slide(real_file(info.file, paths=paths)) as slide:
            if slide.dimensions != (info.width, info.height):
                raise SlideError("is not the slide that this run was made from, its size is another")
            yield slide
    except SlideError as error:
        reason = public_reason(error, stored=info.file)
        raise UserError(
            f"diffusion.condition_maps reads the slides again, and slide {info.slide_id} cannot be read: {reason}; put "
            "it back, or set diffusion.condition_maps=false"
        ) from error


def _squares_about(slide: Slide, *, x: float, y: float, extent: float) -> tuple[np.ndarray, np.ndarray]:
    """The patches about the places of one patch, and their surroundings: (left, top, side) in level-0 px, (P, 3).

    At the slide's edge they are moved inwards.
    """
    steps_G = (np.arange(PLACES) + 0.5) / PLACES * extent - extent / 2
    width, height = slide.dimensions
    x_P = np.clip(np.tile(x + steps_G, PLACES), 0, max(0.0, width - extent))
    y_P = np.clip(np.repeat(y + steps_G, PLACES), 0, max(0.0, height - extent))
    squares_P3 = np.stack([x_P, y_P, np.full(len(x_P), extent)], axis=1)
    return squares_P3, fields_of(x_P, y_P, extent=extent, dimensions=slide.dimensions)


def _cut(slide: Slide, squares_P3: np.ndarray, *, size: int) -> np.ndarray:
    """The images of overlapping squares of one side, uint8 (P, size, size, 3), cut out of one that covers them all."""
    left, top, side = squares_P3.min(axis=0)
    scale = size / side
    corners_P2 = np.rint((squares_P3[:, :2] - [left, top]) * scale).astype(int)
    across, down = (corners_P2.max(axis=0) + size).tolist()
    box = (float(left), float(top), float(left + across / scale), float(top + down / scale))
    image_HW3 = slide.region(box, shape=(across, down))
    return np.stack([image_HW3[row : row + size, column : column + size] for column, row in corners_P2])
