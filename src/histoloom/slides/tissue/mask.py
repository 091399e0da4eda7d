"""Where on a thumbnail there is tissue.

Stained tissue absorbs green more than red or blue; glass, shadows, dust and black borders absorb all three alike. So
the measure is *stain*, the spread of the three optical densities. Stain alone does not tell pale fat from a puddle of
eosin beside the section: tissue also has structure, and a puddle has none. A pixel is tissue where

- its stain is above half of Otsu's threshold (1979), held inside ``THRESHOLDS`` so that a slide full of tissue does not
  lose its pale half, and lies in structure; or is as strong as ``STRONG``, whatever lies around;
- or it lies in a gap narrower than ``2 * _GAP`` px between such pixels: the cells of fat. Wider holes stay holes;
- and it is not pen or grey (``ink``), and not a speck.

Lengths are px of the thumbnail, whose longer side is at most 1024 px.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import disk

from histoloom.slides.tissue.pen import PenMask, find_ink, optical_density, smoothed, without_specks

THRESHOLDS = (0.03, 0.08)  # natural-log optical density
STRONG = 0.25  # natural-log optical density
STRUCTURE = 0.01  # deviation of stain in its neighbourhood, natural-log optical density
_SMOOTHING = 1.0
_NEIGHBOURHOOD = 3.0
_GAP = 4
_OTSU_SHARE = 0.5  # Otsu's own threshold lies in the middle of the stain, above fat
_THIN = 1  # what is no wider than twice this plus one is a scratch or an edge
_SPECK_SHARE = 1e-4  # of the thumbnail's area
_BLACK = 12.0  # below this the ratio of channels is noise, 0..255


@dataclass(frozen=True)
class Seen:
    """What is on a thumbnail: ``tissue_hw`` and ``pen_hw``, bool."""

    tissue_hw: np.ndarray
    pen_hw: np.ndarray


def examine(thumbnail: np.ndarray) -> Seen:
    """Tissue and pen of a thumbnail, RGB uint8 (h, w, 3)."""
    density_hw3 = optical_density(thumbnail)
    ink = find_ink(density_hw3)
    stain_hw = _stain(density_hw3, thumbnail=thumbnail, ink=ink)
    otsu = threshold_otsu(stain_hw) if np.ptp(stain_hw) > 0 else 0.0
    threshold = np.clip(_OTSU_SHARE * otsu, *THRESHOLDS)
    structured_hw = _deviation(stain_hw) > STRUCTURE
    mask_hw = (stain_hw > threshold) & structured_hw | (stain_hw > STRONG)
    mask_hw = _closed(mask_hw) & ~ink.pen_hw
    mask_hw = ndimage.binary_opening(mask_hw, structure=disk(_THIN))
    return Seen(without_specks(mask_hw, smallest=_SPECK_SHARE * mask_hw.size), ink.pen_hw)


def tissue_mask(thumbnail: np.ndarray) -> np.ndarray:
    """Tissue, bool (h, w), of a thumbnail, RGB uint8 (h, w, 3). Holes in tissue stay holes; specks are dropped."""
    return examine(thumbnail).tissue_hw


def _stain(density_hw3: np.ndarray, *, thumbnail: np.ndarray, ink: PenMask) -> np.ndarray:
    """Largest minus smallest optical density of the three channels, float (h, w), 0 for glass, grey, black and pen."""
    channels = np.moveaxis(smoothed(density_hw3, sigma=_SMOOTHING), 2, 0)
    spread_hw = reduce(np.maximum, channels) - reduce(np.minimum, channels)
    black_hw = smoothed(thumbnail.max(axis=2).astype(np.float32), sigma=_SMOOTHING) < _BLACK
    return np.asarray(np.where(ink.pen_hw | ink.grey_hw | black_hw, 0, spread_hw))


def _deviation(stain_hw: np.ndarray) -> np.ndarray:
    """How much stain varies around each pixel beyond its slow changes, float (h, w)."""
    detail_hw = stain_hw - smoothed(stain_hw, sigma=_NEIGHBOURHOOD)
    return np.asarray(np.sqrt(smoothed(detail_hw**2, sigma=_NEIGHBOURHOOD)))


def _closed(mask_hw: np.ndarray) -> np.ndarray:
    """The mask with its narrow gaps filled; the thumbnail's edge counts as mirror."""
    padded = np.pad(mask_hw, _GAP, mode="edge")
    closed = ndimage.binary_closing(padded, structure=disk(_GAP))
    return np.asarray(closed[_GAP:-_GAP, _GAP:-_GAP])


def tissue_share(
    mask: np.ndarray, *, x: np.ndarray, y: np.ndarray, extent: float, width: int, height: int
) -> np.ndarray:
    """Tissue share, float (n,) 0..1, of squares at level-0 (x, y) of side ``extent`` on a slide of width x height px.

    Exact: an area-weighted mean of the mask, by its summed-area table read between its nodes.
    """
    table = np.pad(mask.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    scale_y, scale_x = mask.shape[0] / height, mask.shape[1] / width
    left, right = np.asarray(x) * scale_x, (np.asarray(x) + extent) * scale_x
    top, bottom = np.asarray(y) * scale_y, (np.asarray(y) + extent) * scale_y
    corners = [(bottom, right, 1), (top, right, -1), (bottom, left, -1), (top, left, 1)]
    total = sum(sign * _between(table, rows=rows, columns=columns) for rows, columns, sign in corners)
    return np.clip(total / (extent * scale_x * extent * scale_y), 0, 1)


def _between(table: np.ndarray, *, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.asarray(ndimage.map_coordinates(table, [rows, columns], order=1, mode="nearest"))
