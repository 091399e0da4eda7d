"""How strongly patches and slides are stained: mean optical density of haematoxylin and eosin.

Light falls off by the law of Beer and Lambert; its density is split by scikit-image's directions (Ruifrok & Johnston
2001), as in ``histoloom.slides.stain.augment``. Shapes: N patches, H x W px, 3 channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from skimage.color import hed_from_rgb

PIXELS = 64
"""Pixels looked at along each side: a mean needs no more."""

TISSUE_DENSITY = 0.15
"""Mean optical density (natural logarithm) from which a pixel counts as tissue: glass is below 0.1."""


@dataclass(frozen=True)
class PatchStains:
    """Of each patch, (N,): mean density of haematoxylin and of eosin, and the sums of both over its tissue's pixels."""

    haematoxylin_N: np.ndarray
    eosin_N: np.ndarray
    tissue_haematoxylin_N: np.ndarray
    tissue_eosin_N: np.ndarray


@dataclass(frozen=True)
class SlideStain:
    """A slide's ``balance``: haematoxylin's share of the stain in its tissue, 0..1 where both are above 0."""

    balance: float


def patch_stains(images_NHW3: np.ndarray) -> PatchStains:
    """Stains of patches, uint8 (N, H, W, 3)."""
    step = max(1, images_NHW3.shape[1] // PIXELS)
    density_NHW3 = -np.log((images_NHW3[:, ::step, ::step].astype(np.float64) + 1) / 256)
    stains_NHW3 = density_NHW3 @ hed_from_rgb
    h_NHW, e_NHW = stains_NHW3[..., 0].clip(min=0), stains_NHW3[..., 1].clip(min=0)
    tissue_NHW = density_NHW3.mean(axis=-1) > TISSUE_DENSITY
    axes = (1, 2)
    return PatchStains(
        h_NHW.mean(axes), e_NHW.mean(axes), (h_NHW * tissue_NHW).sum(axes), (e_NHW * tissue_NHW).sum(axes)
    )


def slide_stains(stains: PatchStains, *, slides_N: np.ndarray) -> Mapping[str, SlideStain]:
    """Stain of each slide, from its patches' tissue; a slide without tissue counts as balanced."""
    found = {}
    for slide in np.unique(slides_N.astype(str)):
        of_slide = slides_N.astype(str) == slide
        h, e = (float(x[of_slide].sum()) for x in (stains.tissue_haematoxylin_N, stains.tissue_eosin_N))
        found[str(slide)] = SlideStain(h / (h + e) if h + e > 0 else 0.5)
    return found
