"""Where on a thumbnail there is tissue.

Stained tissue absorbs green more than red or blue; glass, shadows and black borders absorb all three alike. So the
measure is the spread of the three optical densities, and its threshold is Otsu's (1979), held inside bounds: a
blank slide then has no tissue, and a slide full of tissue does not lose its pale half.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

THRESHOLDS = (0.05, 0.12)  # natural-log optical density
_SMOOTHING = 1.0  # px of the thumbnail
_SPECK_SHARE = 1e-4  # of the thumbnail's area
_SPARSE = 4  # every so manieth pixel tells the colour of glass
_BLACK = 12.0  # below this the ratio of channels is noise, 0..255


def tissue_mask(thumbnail: np.ndarray) -> np.ndarray:
    """Tissue, bool (h, w), of a thumbnail, RGB uint8 (h, w, 3). Holes in tissue stay holes; specks are dropped."""
    stain = stain_spread(thumbnail)
    otsu = threshold_otsu(stain) if np.ptp(stain) > 0 else THRESHOLDS[1]
    mask = stain > np.clip(otsu, *THRESHOLDS)
    return _without_specks(mask, smallest=_SPECK_SHARE * mask.size)


def stain_spread(thumbnail: np.ndarray) -> np.ndarray:
    """Largest minus smallest optical density of the three channels, float (h, w), 0 for glass, grey and black."""
    channels = [ndimage.gaussian_filter(thumbnail[..., i].astype(np.float32), sigma=_SMOOTHING) for i in range(3)]
    glass = _glass(thumbnail[::_SPARSE, ::_SPARSE])
    densities = [-np.log((channel + 1) / (colour + 1)) for channel, colour in zip(channels, glass, strict=True)]
    spread = reduce(np.maximum, densities) - reduce(np.minimum, densities)
    return np.asarray(np.where(reduce(np.maximum, channels) < _BLACK, 0, spread))


def _glass(image: np.ndarray) -> np.ndarray:
    """The colour of empty glass (3,): the median of the brightest hundredth where that is near white, else white."""
    lightness = image.min(axis=2)
    brightest = image[lightness >= np.quantile(lightness, 0.99)]
    colour = np.median(brightest, axis=0)
    return np.asarray(colour if colour.min() >= 200 and np.ptp(colour) <= 20 else np.full(3, 255.0))


def _without_specks(mask: np.ndarray, *, smallest: float) -> np.ndarray:
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= smallest)[parts] & mask)


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
