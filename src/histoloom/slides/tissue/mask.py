"""Where on a thumbnail there is tissue, and where there is pen.

Stained tissue absorbs green more than red or blue; glass, shadows, dust and black borders absorb all three alike. So
the measure is *stain*, the spread of the three optical densities. Stain alone does not tell pale fat from a puddle of
eosin next to the section: tissue also has structure, and a puddle has none. A pixel is tissue where

- its stain is above half of Otsu's threshold (1979), held inside ``THRESHOLDS`` so that a slide full of tissue does not
  lose its pale half, and lies in structure; or is as strong as ``STRONG``, whatever lies around;
- or it lies in a gap narrower than ``2 * _GAP`` px between such pixels: the cells of fat. Wider holes stay holes;
- and it is not pen or grey (``find_pen``), and not a speck.

Pen is what cannot be stain by its colour. Haematoxylin and eosin both absorb green most, blue about half as much, and
red between hardly (eosin) and as much as green (haematoxylin), so that optical densities of stained tissue lie inside a
wedge. Blue and green pen absorb red most, and black, grey and shadow absorb all three alike. Their bounds were put
where sections of breast, skin and head and neck of three laboratories, smoothed over 2 px of a thumbnail, have at most
a thousandth of their stained pixels beyond.

Red pen absorbs blue nearly as much as green. So do red blood cells and the eosin of bone, but these absorb more red:
strongly stained bone absorbs 0.14 to 0.25 of the green optical density in red, ink on glass 0.08 to 0.12. Single pixels
of bone cross any bound, so the rule is about regions: a connected region with the colour of red pen or bone is pen only
if more than a third of it has the colour of ink on glass. Red pen on tissue counts where it continues a stroke on
glass. Brown stains (DAB) and pigments count as tissue; pink pen with the very colour of eosin cannot be told from it.

Lengths are px of the thumbnail, whose longer side is at most 1024 px; optical densities are natural logarithms. Shape
letters: h, w of a thumbnail; P pixels; 3 the channels red, green, blue.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import reduce

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import disk

THRESHOLDS = (0.03, 0.08)  # of stain
STRONG = 0.25  # stain that is tissue without structure too
STRUCTURE = 0.01  # least deviation of stain in its neighbourhood
_SMOOTHING = 1.0
_NEIGHBOURHOOD = 3.0
_GAP = 4
_OTSU_SHARE = 0.5  # Otsu's own threshold lies in the middle of the stain, above fat
_THIN = 1  # what is no wider than twice this plus one is a scratch or an edge
_SPECK_SHARE = 1e-4  # of the thumbnail's area
_BLACK = 12.0  # below this the ratio of channels is noise, 0..255

RED_OVER_GREEN = 1.3  # blue and green pen lie above
DARK_RED_OVER_GREEN, DARK_RED = 1.05, 1.6  # navy pen lies above both; nuclei side by side stay below the second
MAYBE_RED_PEN = (0.4, 0.78)  # red over green below the first, blue over green above the second: red pen, bone or blood
RED_INK = (0.15, 0.82)  # the same of red ink on glass
RED_INK_SHARE = 0.35  # of a region that may be red pen
GREY = 0.72  # least over largest optical density
FAINT = 0.2  # optical density under which the colour is not reliable
BLACK_DENSITY = 1.0  # grey as dark as that is pen or border; what is lighter is dust or shadow
_PEN_SMOOTHING = 2.0
_FRINGE = 5  # px by which pen reaches into its own thinner edge
_RIM = 2  # px around pen that are pen too
_SMALLEST_PEN = 2e-5  # of the thumbnail's area; pen lies in strokes
GLASS_STEP = 4  # every fourth row and column is enough for the colour of glass


@dataclass(frozen=True)
class ThumbnailMasks:
    """Tissue and pen of a thumbnail, bool (h, w)."""

    tissue_hw: np.ndarray
    pen_hw: np.ndarray


@dataclass(frozen=True)
class PackedMask:
    """A mask, bool (h, w), or labels, uint8 (h, w), compressed without loss: the stage keeps those of all slides.

    A thumbnail's mask of 1 MB takes a few KB; packing and unpacking take about a millisecond.
    """

    data: bytes
    shape_hw: tuple[int, int]
    is_bool: bool

    @classmethod
    def of(cls, mask_hw: np.ndarray) -> PackedMask:
        """Compress a mask or labels."""
        if mask_hw.dtype not in (np.bool_, np.uint8):
            raise TypeError(f"a mask is bool, labels are uint8; these are {mask_hw.dtype}")
        is_bool = mask_hw.dtype == np.bool_
        values = np.packbits(mask_hw) if is_bool else mask_hw
        height, width = mask_hw.shape
        return cls(zlib.compress(values.tobytes(), level=1), (height, width), is_bool)

    def unpacked(self) -> np.ndarray:
        """The mask or the labels as they were, (h, w)."""
        values = np.frombuffer(zlib.decompress(self.data), np.uint8)
        if self.is_bool:
            values = np.unpackbits(values, count=self.shape_hw[0] * self.shape_hw[1]).view(np.bool_)
        return values.reshape(self.shape_hw)


@dataclass(frozen=True)
class PenMask:
    """``pen_hw``: pen of any colour, or as black as one; ``grey_hw``: without stain's colour, dust and edges; bool."""

    pen_hw: np.ndarray
    grey_hw: np.ndarray


def segment_thumbnail(thumbnail: np.ndarray) -> ThumbnailMasks:
    """Tissue and pen of a thumbnail, RGB uint8 (h, w, 3)."""
    density_hw3 = optical_density(thumbnail)
    pen = find_pen(density_hw3)

    # Stain: largest minus smallest optical density, 0 for glass, grey, black and pen.
    channels = np.moveaxis(_smoothed(density_hw3, sigma=_SMOOTHING), 2, 0)
    spread_hw = reduce(np.maximum, channels) - reduce(np.minimum, channels)
    brightest_hw = reduce(np.maximum, np.moveaxis(thumbnail, 2, 0))
    black_hw = _smoothed(brightest_hw.astype(np.float32), sigma=_SMOOTHING) < _BLACK
    stain_hw = np.where(pen.pen_hw | pen.grey_hw | black_hw, 0, spread_hw)

    # Structure: how much stain varies around each pixel beyond its slow changes.
    detail_hw = stain_hw - _smoothed(stain_hw, sigma=_NEIGHBOURHOOD)
    structured_hw = np.sqrt(_smoothed(detail_hw**2, sigma=_NEIGHBOURHOOD)) > STRUCTURE

    otsu = threshold_otsu(stain_hw) if np.ptp(stain_hw) > 0 else 0.0
    threshold = np.clip(_OTSU_SHARE * otsu, *THRESHOLDS)
    mask_hw = (stain_hw > threshold) & structured_hw | (stain_hw > STRONG)

    # Narrow gaps are filled (the thumbnail's edge counts as mirror), then pen, scratches and specks are removed.
    padded_hw = np.pad(mask_hw, _GAP, mode="edge")
    mask_hw = ndimage.binary_closing(padded_hw, structure=disk(_GAP))[_GAP:-_GAP, _GAP:-_GAP] & ~pen.pen_hw
    mask_hw = ndimage.binary_opening(mask_hw, structure=disk(_THIN))
    return ThumbnailMasks(_without_specks(mask_hw, smallest=_SPECK_SHARE * mask_hw.size), pen.pen_hw)


def tissue_mask(thumbnail: np.ndarray) -> np.ndarray:
    """Tissue, bool (h, w), of a thumbnail, RGB uint8 (h, w, 3). Holes in tissue stay holes; specks are dropped."""
    return segment_thumbnail(thumbnail).tissue_hw


def optical_density(thumbnail: np.ndarray) -> np.ndarray:
    """Optical densities against empty glass, float32 (h, w, 3), of a thumbnail, RGB uint8 (h, w, 3)."""
    glass_3 = glass_colour(thumbnail[::GLASS_STEP, ::GLASS_STEP].reshape(-1, 3))
    glass_3 = np.full(3, 255.0) if glass_3 is None else glass_3
    # A channel has 256 values, so that the logarithm is looked up.
    by_value = -np.log((np.arange(256)[:, None] + 1) / (glass_3 + 1)).astype(np.float32)
    return np.stack([by_value[:, channel][thumbnail[..., channel]] for channel in range(3)], axis=2)


def find_pen(density_hw3: np.ndarray) -> PenMask:
    """The parts of optical densities (h, w, 3) that cannot be haematoxylin and eosin."""
    smooth_hw3 = _smoothed(density_hw3, sigma=_PEN_SMOOTHING)
    red, green, blue = channels = np.moveaxis(smooth_hw3, 2, 0)
    largest, least = reduce(np.maximum, channels), reduce(np.minimum, channels)
    cold = (red > RED_OVER_GREEN * green) | ((red > DARK_RED_OVER_GREEN * green) & (red > DARK_RED))
    grey = least > GREY * largest
    dense = largest > FAINT

    maybe_red, red_ink = (
        dense & (red < red_bound * green) & (blue > blue_bound * green)
        for red_bound, blue_bound in (MAYBE_RED_PEN, RED_INK)
    )
    regions, n = ndimage.label(maybe_red)
    ink_share = np.bincount(regions[red_ink], minlength=n + 1) / np.bincount(regions.ravel(), minlength=n + 1).clip(1)
    red_pen = (ink_share > RED_INK_SHARE)[regions] & maybe_red

    pen_hw = red_pen | dense & (cold | (grey & (least > BLACK_DENSITY)))
    pen_hw = _without_specks(pen_hw, smallest=_SMALLEST_PEN * pen_hw.size)
    fringe = dense & (red > DARK_RED_OVER_GREEN * green)
    pen_hw = ndimage.binary_dilation(pen_hw, iterations=_FRINGE, mask=fringe | pen_hw)
    return PenMask(ndimage.binary_dilation(pen_hw, iterations=_RIM), dense & grey)


def glass_colour(pixels_P3: np.ndarray) -> np.ndarray | None:
    """The colour of empty glass (3,), 0..255, among pixels of a thumbnail; None where there is none.

    It is the median of the brightest hundredth, where that is near white.
    """
    lightness_P = pixels_P3.min(axis=1)
    colour_3 = np.median(pixels_P3[lightness_P >= np.quantile(lightness_P, 0.99)], axis=0)
    return np.asarray(colour_3) if colour_3.min() >= 200 and np.ptp(colour_3) <= 20 else None


def tissue_share(
    mask: np.ndarray, *, x: np.ndarray, y: np.ndarray, extent: float, width: int, height: int
) -> np.ndarray:
    """Tissue share, float (n,) 0..1, of squares at level-0 (x, y) of side ``extent`` on a slide of width x height px.

    Exact: an area-weighted mean of the mask, by its summed-area table (Crow 1984) interpolated between its nodes.
    """
    table = np.pad(mask.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    scale_y, scale_x = mask.shape[0] / height, mask.shape[1] / width
    left, right = np.asarray(x) * scale_x, (np.asarray(x) + extent) * scale_x
    top, bottom = np.asarray(y) * scale_y, (np.asarray(y) + extent) * scale_y
    corners = [(bottom, right, 1), (top, right, -1), (bottom, left, -1), (top, left, 1)]
    total = sum(
        sign * ndimage.map_coordinates(table, [rows, columns], order=1, mode="nearest")
        for rows, columns, sign in corners
    )
    return np.clip(total / (extent * scale_x * extent * scale_y), 0, 1)


def _smoothed(image: np.ndarray, *, sigma: float) -> np.ndarray:
    """A Gaussian over ``sigma`` px along both sides of (h, w) or (h, w, 3)."""
    return np.asarray(ndimage.gaussian_filter(image, (sigma, sigma, 0)[: image.ndim]))


def _without_specks(mask: np.ndarray, *, smallest: float) -> np.ndarray:
    """A bool mask (h, w) without its connected parts of fewer than ``smallest`` px."""
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray((sizes >= smallest)[parts] & mask)
