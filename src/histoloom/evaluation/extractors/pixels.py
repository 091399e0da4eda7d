"""Colours and coarse layout, from the pixels alone: always at hand, blind to texture."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from histoloom.errors import UserError
from histoloom.evaluation.extractors.base import Extractor, Sources

SIDE = 8
VERSION = "pixels-1"


class Pixels(Extractor):
    """The image at 8 x 8 px, then mean, deviation and cube root of the third moment of each channel: 201 numbers."""

    name = "pixels"
    digest = VERSION
    least = SIDE

    def block(self, images_BHW3: np.ndarray) -> np.ndarray:
        x_B3HW = torch.from_numpy(images_BHW3).permute(0, 3, 1, 2).double() / 255
        small_BD = F.adaptive_avg_pool2d(x_B3HW, SIDE).flatten(1)
        mean_B3 = x_B3HW.mean(dim=(2, 3))
        centred_B3HW = x_B3HW - mean_B3[:, :, None, None]
        squares_B3HW = centred_B3HW.square()
        deviation_B3 = squares_B3HW.mean(dim=(2, 3)).sqrt()
        third_B3 = (squares_B3HW * centred_B3HW).mean(dim=(2, 3))
        skew_B3 = third_B3.sign() * third_B3.abs().pow(1 / 3)
        return torch.cat([small_BD, mean_B3, deviation_B3, skew_B3], dim=1).float().numpy()


def make(rest: str, sources: Sources) -> Pixels:  # noqa: ARG001 - it needs nothing
    """``pixels``."""
    if rest:
        raise UserError(f"the extractor pixels takes no name, got pixels:{rest}; write pixels")
    return Pixels()
