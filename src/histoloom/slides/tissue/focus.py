"""Whether a patch is in focus.

The measure is the variance of the Laplacian (Pech-Pacheco et al. 2000) divided by the variance of the image itself, so
that pale stain does not count as blur, both of the light's density and both on stained pixels only:
glass and the empty cells of fat are neither sharp nor blurred. Patches that are enlarged beyond their slide's own
pixels are measured at those pixels.

Shape letters: H, W of a patch; 3 the channels red, green, blue.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

LEAST_STAINED = 0.05
"""Patches with a smaller share of stained pixels have nothing to judge."""

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
    if stained_HW.mean() < LEAST_STAINED:
        return None
    green_HW = ndimage.gaussian_filter(density_HW3[..., 1], _NOISE)
    contrast = float(green_HW[stained_HW].var()) + _FLAT
    return float(ndimage.laplace(green_HW)[stained_HW].var()) / contrast
