"""The eight dihedral copies of a square image or latent map: tissue has no up and no left."""

from __future__ import annotations

import torch
from torch import Tensor

DIHEDRAL = 8


def dihedral(x_NCHW: Tensor, choice_N: Tensor) -> Tensor:
    """Each image rotated and flipped by its ``choice`` in 0..7: bit 2 flips, bits 0 and 1 rotate by 90 degrees."""
    result_NCHW = torch.empty_like(x_NCHW)
    for choice in range(DIHEDRAL):
        rows = (choice_N == choice).nonzero()[:, 0]
        if len(rows):
            rotated_NCHW = torch.rot90(x_NCHW[rows], choice % 4, dims=(2, 3))
            result_NCHW[rows] = rotated_NCHW.flip(3) if choice >= 4 else rotated_NCHW
    return result_NCHW
