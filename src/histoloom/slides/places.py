"""Places of patches that another program chose: HDF5 files as TRIDENT and CLAM write them, one a slide.

The dataset ``coords`` holds upper left corners in level-0 px, as OpenSlide counts them. Its attributes say how large
the patches are: ``patch_size_level0`` or the magnifications (TRIDENT), or ``patch_size`` px of a level that is
``downsample`` times as coarse as level 0 (CLAM).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

import h5py
import numpy as np

from histoloom.errors import SlidesAbsent, UserError
from histoloom.slides.entries import SlideEntry, SlideError

COORDS, FOLDER = "coords", "patches"
TRIDENT_SUFFIX = "_patches.h5"
NO_PLACES = "it has no file of places (slides.places)"

_TOLERANCE = 0.1  # of the side; TRIDENT's magnifications are nominal
_ROUNDING = 1.0  # px; both programs round the side to whole px


@dataclass(frozen=True)
class Places:
    """Upper left corners, int64 (n, 2), level-0 px, each once; the patches' side there; how many were ``left_out``
    because their patch reaches over the slide's edge.
    """

    corner_N2: np.ndarray
    extent: float
    left_out: int


class PlaceFiles:
    """The files in a folder, or in its folder ``patches``, as TRIDENT and CLAM lay them out.

    ``SLIDE_patches.h5`` or ``SLIDE.h5``; SLIDE is the slide's file with or without its ending, or the slide id.
    """

    def __init__(self, place: str) -> None:
        """``SlidesAbsent`` where there is nothing at ``place``; ``UserError`` where it holds no such file."""
        path = Path(place)
        if not path.is_dir():
            raise SlidesAbsent(f"no such folder of places: {path} (slides.places)")
        folder = path / FOLDER if (path / FOLDER).is_dir() else path
        self.files: dict[str, Path] = {}
        for file in sorted(file for file in folder.iterdir() if file.suffix.lower() in (".h5", ".hdf5")):
            name = file.name.removesuffix(TRIDENT_SUFFIX) if file.name.endswith(TRIDENT_SUFFIX) else file.stem
            if name in self.files:
                raise UserError(f"{self.files[name].name} and {file.name} both hold places of {name}; move one away")
            self.files[name] = file
        if not self.files:
            raise UserError(f"{folder} holds no NAME_patches.h5 or NAME.h5 (slides.places); give the folder that does")

    def of(self, slide: SlideEntry) -> Path | None:
        """The file of a slide; None where there is none."""
        names = (slide.file.name, slide.file.stem, name_without_ending(slide.file), slide.slide_id)
        return next((self.files[name] for name in names if name in self.files), None)


def name_without_ending(slide: PurePath) -> str:
    """``a`` of ``a.svs`` and, as in TRIDENT, of ``a.ome.tif``."""
    return slide.stem.removesuffix(".ome")


def read_places(path: Path, *, dimensions: tuple[int, int], extent: float, size: int, source_mpp: float) -> Places:
    """The places in ``path`` of a slide of ``dimensions`` (width, height), level-0 px, and ``source_mpp`` um/px.

    ``extent`` is the side that patches of ``size`` px have by the settings. Raises ``SlideError`` where the file says
    another or cannot be used.
    """
    try:
        with h5py.File(path, "r") as file:
            corner_N2, attributes = np.asarray(file[COORDS]), dict(file[COORDS].attrs)
            side = _side(attributes)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SlideError(
            "its places cannot be read; give HDF5 with coords as TRIDENT or CLAM write it",
            detail=f"{path.name}: {error}",
        ) from error
    corner_N2 = corner_N2.reshape(0, 2) if corner_N2.size == 0 else corner_N2
    if corner_N2.ndim != 2 or corner_N2.shape[1] != 2 or not np.array_equal(corner_N2, np.round(corner_N2)):
        raise SlideError("its places are no table of x and y in whole px of level 0", detail=path.name)
    if abs(side / extent - 1) > _TOLERANCE:
        raise SlideError(
            f"its places have {side:g} px of level 0, {side * source_mpp:.0f} um, the settings {extent:.0f} px, "
            f"{extent * source_mpp:.0f} um; set patches.mpp={side * source_mpp / size:.3g} for patches.size={size}",
            detail=path.name,
        )
    side = extent if abs(side - extent) < _ROUNDING else side

    # Patches may reach over the edge in both programs; a corner outside shows that the file is of another slide.
    _, first = np.unique(corner_N2, axis=0, return_index=True)
    corner_N2 = corner_N2[np.sort(first)].astype(np.int64)
    outside = int(((corner_N2 < 0) | (corner_N2 >= dimensions)).any(axis=1).sum())
    if outside:
        raise SlideError(
            f"{outside} of its {len(corner_N2)} places lie outside of the slide, which has {dimensions[0]} x "
            f"{dimensions[1]} px; give the file that was made of this slide",
            detail=path.name,
        )
    whole: np.ndarray = np.all(corner_N2 + side <= np.array(dimensions) + _ROUNDING, axis=1)
    if not whole.any():
        raise SlideError(f"none of its {len(corner_N2)} places has a whole patch on the slide", detail=path.name)
    return Places(corner_N2[whole], side, int((~whole).sum()))


def _side(attributes: Mapping[str, object]) -> float:
    """The patches' side, level-0 px, as the attributes of ``coords`` say."""
    values = {name: float(np.max(np.asarray(attributes[name], float))) for name in _SIZES if name in attributes}
    if {"patch_size", "level0_magnification", "target_magnification"} <= values.keys():
        side = values["patch_size"] * values["level0_magnification"] / values["target_magnification"]
    elif "patch_size_level0" in values:
        side = values["patch_size_level0"]
    elif "patch_size" in values and (values.get("patch_level") == 0 or "downsample" in values):
        side = values["patch_size"] * values.get("downsample", 1.0) * values.get("custom_downsample", 1.0)
    else:
        raise ValueError("the attributes of coords do not say the patches' size")
    if not np.isfinite(side) or side <= 0:
        raise ValueError(f"patches of {side:g} px")
    return float(side)


_SIZES = (
    "patch_size",
    "patch_size_level0",
    "level0_magnification",
    "target_magnification",
    "patch_level",
    "downsample",
    "custom_downsample",
)
