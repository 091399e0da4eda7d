"""The eight dihedral copies of a square image or latent map: tissue has no up and no left."""

from __future__ import annotations

import torch
from torch import Tensor

DIHEDRAL = 8


def dihedral(x_NCHW: Tensor, copy_N: Tensor) -> Tensor:
    """The dihedral copy 0..7 of each image: ``copy % 4`` rotations by 90 degrees, then a flip from 4 on."""
    result_NCHW = torch.empty_like(x_NCHW)
    for copy in range(DIHEDRAL):
        rows = (copy_N == copy).nonzero()[:, 0]
        if len(rows):
            rotated_NCHW = torch.rot90(x_NCHW[rows], copy % 4, dims=(2, 3))
            result_NCHW[rows] = rotated_NCHW.flip(3) if copy >= 4 else rotated_NCHW
    return result_NCHW
