"""``histoloom export --to trident`` and ``--to clam``: the places of a run's patches as HDF5, a file a slide.

Both programs read the upper left corners, level-0 px, from the dataset ``coords``, and the patches' size from its
attributes. They mean different things by ``patch_size``: px at the target magnification in TRIDENT, px of the level
``patch_level`` in CLAM. Therefore each has files of its own. ``histoloom.slides.places`` reads both.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from pathlib import Path, PurePath
from typing import Literal

import h5py
import numpy as np

from histoloom.config import PRIVATE
from histoloom.errors import UserError
from histoloom.run.directory import Run, disk_errors_explained
from histoloom.sharing.patch_labels import LabelledPatches
from histoloom.slides.patch_set import SlideRow
from histoloom.slides.places import COORDS, FOLDER, TRIDENT_SUFFIX, name_without_ending

logger = logging.getLogger("histoloom")

Program = Literal["trident", "clam"]
"""The program that is to read the files."""

MPP_TIMES_MAGNIFICATION = 10.0
"""um/px times magnification, as TRIDENT's WSIPatcher computes one from the other."""


def export_coordinates(run: Run, out: Path, *, program: Program) -> None:
    """Write ``out/patches/``; ``UserError`` where ``out`` is not new, or patches or clusters are missing."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; give a new folder")
    labelled = LabelledPatches.open(run)
    slides = [slide for slide in SlideRow.load(labelled.patches.folder) if slide.patches]
    table = labelled.patches.columns("slide_id", "split", "x", "y", "extent")
    rows = table.groupby("slide_id", sort=False).indices
    names, size, mpp = file_names(slides), labelled.patches.size, labelled.patches.mpp
    clusters = {f"k{k}": labelled.clusters(k) for k in labelled.clustering.ks}
    tissues = {f"k{k}": [label.name for label in labelled.labels(k).values()] for k in labelled.clustering.ks}
    for k in labelled.clustering.ks:
        if labelled.corrected(k).numbers:
            clusters[f"k{k}_corrected"] = labelled.numbers(k)
            tissues[f"k{k}_corrected"] = [*tissues[f"k{k}"], *labelled.corrected(k).names]
    with disk_errors_explained(out):
        part = out.with_name(f".{out.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        (part / FOLDER).mkdir(parents=True)
        for slide in slides:
            name, row_n = names[slide.slide_id], rows[slide.slide_id]
            of_slide = table.iloc[row_n]
            extent = float(of_slide["extent"].iloc[0])
            attributes = attributes_of(slide, program=program, size=size, mpp=mpp, extent=extent)
            attributes |= {"name": name, "savetodir" if program == "trident" else "save_path": out.name}
            file_name = f"{name}{TRIDENT_SUFFIX if program == 'trident' else '.h5'}"
            with h5py.File(part / FOLDER / file_name, "w") as file:
                coords = file.create_dataset(COORDS, data=of_slide[["x", "y"]].to_numpy(np.int64))
                coords.attrs.update(attributes)
                # Neither program reads other datasets than coords from these files.
                file.create_dataset("split", data=of_slide["split"].to_numpy(object), dtype=h5py.string_dtype())
                file.attrs["k"] = labelled.k(None)
                for column, cluster_N in clusters.items():
                    dataset = file.create_dataset(column, data=cluster_N[row_n])
                    dataset.attrs.create("tissue", tissues[column], dtype=h5py.string_dtype())
        if out.exists():
            out.rmdir()
        part.rename(out)
    logger.info("%s patches of %s slides", f"{len(table):,}", len(slides))


def file_names(slides: list[SlideRow]) -> dict[str, str]:
    """The name of each slide's file, by slide id: the slide's own without its ending, as both programs look for it.

    Where that is private or that of several slides, the slide id.
    """
    own = {
        slide.slide_id: slide.slide_id if slide.file.startswith(PRIVATE) else name_without_ending(PurePath(slide.file))
        for slide in slides
    }
    times = Counter(name.lower() for name in own.values())  # some file systems do not tell cases apart
    return {slide_id: name if times[name.lower()] == 1 else slide_id for slide_id, name in own.items()}


def attributes_of(slide: SlideRow, *, program: Program, size: int, mpp: float, extent: float) -> dict[str, object]:
    """The attributes of ``coords`` as trident/IO.py (coords_to_h5) or CLAM's WholeSlideImage.process_contour sets them.

    Less the name and the folder. CLAM is told of patches of level 0, which every slide has. TRIDENT reads ``patch_size
    * level0_magnification / target_magnification`` px of level 0; its own magnifications are nominal, and these give
    exactly the patches of the run.
    """
    dimensions = (slide.width, slide.height)
    if program == "clam":
        levels = {"patch_level": 0, "downsample": (1.0, 1.0), "downsampled_level_dim": dimensions}
        return {"patch_size": round(extent), "level_dim": dimensions, **levels}
    target = MPP_TIMES_MAGNIFICATION / mpp
    level0 = target * extent / size
    return {
        "patch_size": size,
        "patch_size_level0": round(extent),
        "level0_magnification": round(level0) if level0 == round(level0) else level0,
        "target_magnification": round(target) if target == round(target) else target,
        "overlap": 0,
        "level0_width": slide.width,
        "level0_height": slide.height,
    }
