"""Changes of stain, as laboratories, days and scanners make them.

Light falls off by the law of Beer and Lambert, so stains add in optical density; it is split into haematoxylin, eosin
and a rest (Ruifrok & Johnston 2001, scikit-image's directions), as in the augmentation of Tellez et al. 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor

LIGHT, THICKNESS = 0.08, 0.8
"""How much the lamp and the section's thickness vary, for each unit of the stains' variation."""

STAIN_DRAWS = 10
"""Random numbers behind one other stain."""


def jitter_stain(x_N3HW: Tensor, *, strength: float, generator: torch.Generator) -> Tensor:
    """Each image as if stained elsewhere; images and result float (N, 3, H, W) in -1..1.

    ``strength`` is the deviation of the logarithm of each stain's gain, and of each colour's. ``generator`` is on the
    CPU, so that every device draws the same.
    """
    return restained(x_N3HW, draws_N10=strength * torch.randn(len(x_N3HW), STAIN_DRAWS, generator=generator))


def restained(x_N3HW: Tensor, *, draws_N10: Tensor) -> Tensor:
    """The same for numbers that are drawn already: of three stains, colours and lamps, and a thickness."""
    from skimage.color import hed_from_rgb, rgb_from_hed  # heavy, and here only for two matrices

    draws_N10 = draws_N10.to(x_N3HW.device)
    stain_N31, colour_N31, lamp_N31 = (draws_N10[:, first : first + 3, None] for first in (0, 3, 6))
    thickness_N11 = draws_N10[:, 9:, None]
    # Colour deconvolution of Ruifrok & Johnston: densities = stains x directions, and back after each gain.
    into_33, back_33 = (torch.as_tensor(matrix).to(x_N3HW) for matrix in (hed_from_rgb, rgb_from_hed))
    density_N3P = -((x_N3HW.flatten(2) + 1) * 127.5 + 1).div(256).log()
    stains_N3P = into_33.T @ density_N3P * stain_N31.exp()
    density_N3P = back_33.T @ stains_N3P * (colour_N31 + THICKNESS * thickness_N11).exp()
    light_N3P = (-density_N3P).exp() * (1 + LIGHT * lamp_N31)
    return (light_N3P.mul(256).sub(1).div(127.5).sub(1)).clamp(-1, 1).view_as(x_N3HW)
