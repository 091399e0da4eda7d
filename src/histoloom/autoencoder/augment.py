"""The eight dihedral copies of a square image or latent map: tissue has no up and no left."""

from __future__ import annotations

import torch
from torch import Tensor

DIHEDRAL = 8


def dihedral(x_NCHW: Tensor, copy_N: Tensor) -> Tensor:
    """The dihedral copy 0..7 of each image: ``copy % 4`` rotations by 90 degrees, then a flip from 4 on.

    Which images get which copy is never asked for, so that the CPU does not wait for a GPU.
    """
    copy_N111 = copy_N[:, None, None, None]
    quarters_N111 = copy_N111 % 4
    # A rotation by 90 degrees is a transposition and a flip of the rows, one by 180 degrees flips both. The result is
    # laid out in memory as the first tensor of ``where``.
    x_NCHW = torch.where(quarters_N111 % 2 == 0, x_NCHW, x_NCHW.transpose(2, 3))
    x_NCHW = torch.where((quarters_N111 == 0) | (quarters_N111 == 3), x_NCHW, x_NCHW.flip(2))
    return torch.where((quarters_N111 >= 2) == (copy_N111 >= 4), x_NCHW, x_NCHW.flip(3))
