"""Whether a thumbnail can be haematoxylin and eosin, for which presets, tissue detection and stain methods are made.

The bounds lie far from what sections of breast, bone, colon, skin and head and neck reach: of 7 slides and 115 fields
none has more than 0.002 of brown, 0.007 of blue or green and 0.007 of dark, where scikit-image's section in DAB and
haematoxylin has 0.88 of brown. Stains with the colours of haematoxylin or eosin alone cannot be told from them.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from histoloom.slides.tissue.mask import FAINT, GLASS_STEP, RED_OVER_GREEN, optical_density

_BLACK, _DARK_SHARE = 50, 0.5  # brightest channel of ground that light did not pass, 0..255, and its share of the whole
_GREY = 12  # 0..255; the spread of channels that 99 of 100 pixels keep to, where there is no colour at all
_BLUE_OVER_GREEN, _BROWN_SHARE = 1.15, 0.05  # optical densities: DAB absorbs blue most; share of the stained pixels
_COLD_SHARE = 0.3  # of the stained pixels that absorb red most, which more than pen has
_LEAST_STAINED = 0.002  # of the thumbnail; less says nothing


def not_he(thumbnail: np.ndarray) -> str:
    """Why a thumbnail, RGB uint8 (h, w, 3), cannot be haematoxylin and eosin; empty where it can."""
    if (thumbnail.max(axis=2) < _BLACK).mean() > _DARK_SHARE:
        return "its ground is dark, as in fluorescence"
    # Few pixels are enough, smoothed so that noise and single grains do not count.
    sparse = thumbnail[::GLASS_STEP, ::GLASS_STEP]
    density_hw3 = ndimage.gaussian_filter(optical_density(sparse), (1, 1, 0))
    red, green, blue = np.moveaxis(density_hw3, 2, 0)
    stained = density_hw3.max(axis=2) > FAINT
    if stained.mean() < _LEAST_STAINED:
        return ""
    if np.quantile(np.ptp(sparse, axis=2), 0.99) <= _GREY:
        return "it is grey, without the colours of a stain"
    if (blue > _BLUE_OVER_GREEN * green)[stained].mean() > _BROWN_SHARE:
        return "it has brown or yellow stain, as immunohistochemistry with DAB"
    if (red > RED_OVER_GREEN * green)[stained].mean() > _COLD_SHARE:
        return "most of its stain is blue or green"
    return ""
