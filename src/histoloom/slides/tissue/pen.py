"""What on a slide is not stain, by its colour: pen, black borders, dust, edges of coverslips.

Haematoxylin and eosin both absorb green most, blue about half as much, and red between hardly (eosin) and as much as
green (haematoxylin), so that optical densities of stained tissue lie inside a wedge. Blue and green ink absorb
red most, red ink absorbs blue as much as green, and black, grey and shadow absorb all three alike. The bounds were put
where sections of breast, skin and head and neck of three laboratories, smoothed over 2 px of a thumbnail, have at
most a thousandth of their stained pixels beyond. Brown stains (DAB) and pigments count as tissue; pink ink with the
very colour of eosin cannot be told from it.

Shape letters: h, w of a thumbnail; 3 the channels red, green, blue.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

RED_OVER_GREEN = 1.3  # blue and green ink lie above
DARK_RED_OVER_GREEN, DARK_RED = 1.05, 1.6  # navy ink lies above both; nuclei side by side stay below the second
EOSIN_RED_OVER_GREEN, RED_INK_BLUE_OVER_GREEN = 0.4, 0.78  # red ink: below the first and above the second
GREY = 0.72  # least over largest optical density
FAINT = 0.2  # natural-log optical density under which a colour says nothing
BLACK_DENSITY = 1.0  # grey as dark as that is ink or border; what is lighter is dust or shadow
_SMOOTHING = 2.0  # px of the thumbnail
_FRINGE = 5  # px of the thumbnail by which ink reaches on into its own thinner edge
_RIM = 2  # px of the thumbnail around ink that are ink too
_SMALLEST = 2e-5  # of the thumbnail's area; ink lies in strokes
_SPARSE = 4  # every so manieth pixel tells the colour of glass


@dataclass(frozen=True)
class PenMask:
    """``pen_hw``: pen of any colour, or as black as one; ``grey_hw``: without stain's colour, dust and edges; bool."""

    pen_hw: np.ndarray
    grey_hw: np.ndarray


def optical_density(thumbnail: np.ndarray) -> np.ndarray:
    """Natural-log optical density against empty glass, float32 (h, w, 3), of an RGB uint8 thumbnail (h, w, 3)."""
    glass_3 = _glass(thumbnail[::_SPARSE, ::_SPARSE])
    return np.asarray(-np.log((thumbnail.astype(np.float32) + 1) / (glass_3 + 1)), dtype=np.float32)


def find_ink(density_hw3: np.ndarray) -> PenMask:
    """What in optical densities (h, w, 3) cannot be haematoxylin and eosin."""
    smooth_hw3 = smoothed(density_hw3, sigma=_SMOOTHING)
    red, green, blue = np.moveaxis(smooth_hw3, 2, 0)
    largest, least = smooth_hw3.max(axis=2), smooth_hw3.min(axis=2)
    cold = (red > RED_OVER_GREEN * green) | ((red > DARK_RED_OVER_GREEN * green) & (red > DARK_RED))
    warm = (red < EOSIN_RED_OVER_GREEN * green) & (blue > RED_INK_BLUE_OVER_GREEN * green)
    grey = least > GREY * largest
    dense = largest > FAINT
    pen_hw = dense & (cold | warm | (grey & (least > BLACK_DENSITY)))
    pen_hw = without_specks(pen_hw, smallest=_SMALLEST * pen_hw.size)
    fringe = dense & (red > DARK_RED_OVER_GREEN * green)
    pen_hw = ndimage.binary_dilation(pen_hw, iterations=_FRINGE, mask=fringe | pen_hw)
    return PenMask(ndimage.binary_dilation(pen_hw, iterations=_RIM), dense & grey)


def pen_mask(thumbnail: np.ndarray) -> np.ndarray:
    """Pen and black borders, bool (h, w), of a thumbnail, RGB uint8 (h, w, 3)."""
    return find_ink(optical_density(thumbnail)).pen_hw


def smoothed(image: np.ndarray, *, sigma: float) -> np.ndarray:
    """A Gaussian over ``sigma`` px along both sides of (h, w) or (h, w, 3)."""
    return np.asarray(ndimage.gaussian_filter(image, (sigma, sigma, 0)[: image.ndim]))


def without_specks(mask: np.ndarray, *, smallest: float) -> np.ndarray:
    """A bool mask (h, w) without its connected parts of fewer than ``smallest`` px."""
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= smallest)[parts] & mask)


def _glass(image: np.ndarray) -> np.ndarray:
    """The colour of empty glass (3,): the median of the brightest hundredth where that is near white, else white."""
    lightness = image.min(axis=2)
    brightest = image[lightness >= np.quantile(lightness, 0.99)]
    colour = np.median(brightest, axis=0)
    return np.asarray(colour if colour.min() >= 200 and np.ptp(colour) <= 20 else np.full(3, 255.0))
