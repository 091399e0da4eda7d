"""Filters: which patches are rejected, for blur and for pen.

The measure of focus is the variance of the Laplacian (Pech-Pacheco et al. 2000) divided by the variance of the image
itself, so that pale stain does not count as blur. Both are of the light's density, and both on stained pixels only:
glass and the empty cells of fat are neither sharp nor blurred. Patches that are enlarged beyond their slide's own
pixels are measured at those pixels.

Shape letters: H, W of a patch; 3 the channels red, green, blue.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from histoloom.config import PatchesConfig

REASONS = ("blur", "pen")

MIN_STAINED = 0.05
"""Patches with a smaller share of stained pixels have no measure of focus."""

MIN_TISSUE_FOR_FOCUS = 0.2
"""Least tissue share of a patch whose focus is measured: glass with a cloud of eosin on it is not blurred tissue."""

_STAIN = 0.1  # spread of the channels' natural-log optical densities
_FLAT = 1e-3  # variance of density, added: what is so flat has no detail but its pixels' rounding
_NOISE = 0.7  # px, smoothed away first: a sensor's noise and JPEG's are sharp whatever the focus


def sharpness(patch_HW3: np.ndarray, *, enlarged: float = 1.0) -> float | None:
    """How sharp stained tissue in a patch, uint8 (H, W, 3), is; None where there is too little of it.

    ``enlarged``: the patch's px for each of its slide's own, where that is above 1. A Gaussian blur of 1 px quarters
    the value, roughly; it is about the same for patches of any size.
    """
    if enlarged > 1:
        side = max(8, round(len(patch_HW3) / enlarged))
        patch_HW3 = np.asarray(Image.fromarray(patch_HW3).resize((side, side), Image.Resampling.BOX))
    density_HW3 = -np.log((patch_HW3.astype(np.float32) + 1) / 256)
    broad_HW3 = ndimage.gaussian_filter(density_HW3, (2.0, 2.0, 0))
    stained_HW = np.ptp(broad_HW3, axis=2) > _STAIN
    if stained_HW.mean() < MIN_STAINED:
        return None
    green_HW = ndimage.gaussian_filter(density_HW3[..., 1], _NOISE)
    contrast = float(green_HW[stained_HW].var()) + _FLAT
    return float(ndimage.laplace(green_HW)[stained_HW].var()) / contrast


@dataclass(frozen=True)
class Filters:
    """Least ``sharpness`` (None: any) of patches that have ``enlarged`` px a px of the slide, and most ``pen``."""

    blur: float | None
    pen: float | None
    enlarged: float = 1.0

    @staticmethod
    def of(config: PatchesConfig, *, source_mpp: float) -> Filters:
        """The configured filters, for patches of a slide of ``source_mpp`` um/px."""
        return Filters(blur=config.min_sharpness, pen=config.max_pen, enlarged=max(1.0, source_mpp / config.mpp))

    @property
    def active(self) -> bool:
        """Whether any patch may be rejected."""
        return self.blur is not None or self.pen is not None

    def rejection(self, patch_HW3: np.ndarray) -> str | None:
        """Why a patch's pixels, uint8 (H, W, 3), are rejected; None where they are not."""
        if self.blur is None:
            return None
        measured = sharpness(patch_HW3, enlarged=self.enlarged)
        return "blur" if measured is not None and measured < self.blur else None
