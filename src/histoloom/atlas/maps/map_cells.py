"""The classified cells of a slide's map, kept beside its picture: other colours need neither the slide nor networks.

Shape suffixes: N cells, 4 the sides of a cell in level-0 px.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from histoloom.atlas.maps.tissue_map import SlideMap
from histoloom.run.directory import replacing


def write_cells(path: Path, found: SlideMap, *, k: int) -> None:
    """Write the cells of one k, in one step."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            boxes_N4=found.boxes_N4,
            labels_N=found.labels[k].astype(np.uint16),
            dimensions=np.array(found.dimensions, dtype=np.int64),
        )


def read_cells(path: Path, *, k: int, thumbnail: np.ndarray) -> SlideMap:
    """The cells as a map of ``k`` clusters over ``thumbnail``, uint8 (h, w, 3)."""
    with np.load(path) as kept:
        width, height = (int(side) for side in kept["dimensions"])
        return SlideMap(kept["boxes_N4"], {k: kept["labels_N"]}, (width, height), thumbnail)
