"""How alike two images are: SSIM, MS-SSIM and LPIPS of pairs, as pure functions.

Shapes: P pairs, images uint8 0..255 RGB (P, H, W, 3). Values are float64 (P,). Inside, images are float32 in 0..1
with the data range fixed at 1.0 (the same as 255 for uint8), never taken from the images.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from histoloom.autoencoder.lpips import LPIPS
from histoloom.errors import UserError

Images = NDArray[np.uint8]
Values = NDArray[np.float64]

WINDOW = 11
"""px; the Gaussian window of SSIM has this side and a standard deviation of 1.5 px"""
BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""weights of MS-SSIM's five scales, finest first (Wang et al. 2003, section 3.2)"""

# Of torchmetrics: the least side of an image for 1, 2, ... scales is WINDOW times this.
_LEAST_WINDOWS = tuple(max(2**scale, scale**2) for scale in range(len(BETAS)))


def require_size(side: int, *, least: int) -> None:
    """``UserError`` for images whose shorter side is below ``least`` px."""
    if side < least:
        raise UserError(f"images of {side} px are too small for this metric; it needs at least {least} px")


def to_unit(images_NHWC: Images, *, device: torch.device) -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in 0..1."""
    return torch.from_numpy(images_NHWC.copy()).to(device).permute(0, 3, 1, 2).float() / 255


def ssim(a_PHWC: Images, b_PHWC: Images, *, device: torch.device) -> Values:
    """Structural similarity (Wang et al. 2004, IEEE TIP 13(4), 600), mean over the three channels.

    As in the authors' code and in scikit-image, only windows that lie whole in the image count; in single precision
    the values are scikit-image's to 1e-4. Raises ``UserError`` for images smaller than the window.
    """
    require_size(min(a_PHWC.shape[1:3]), least=WINDOW)
    a_PCHW, b_PCHW = to_unit(a_PHWC, device=device), to_unit(b_PHWC, device=device)
    _, map_PCHW = structural_similarity_index_measure(
        a_PCHW, b_PCHW, data_range=1.0, reduction="none", return_full_image=True
    )
    margin = WINDOW // 2
    height, width = a_PHWC.shape[1:3]
    return _values(map_PCHW[..., margin : height - margin, margin : width - margin].mean(dim=(1, 2, 3)))


def ms_ssim_scales(size: int) -> int:
    """How many of MS-SSIM's five scales an image whose shorter side is ``size`` px holds: 5 from 176 px up.

    A scale counts where a whole window fits and where torchmetrics accepts it: 4 scales from 99 px, 3 from 44, 2
    from 22, 1 from 11, none below.
    """
    return sum(size >= WINDOW * windows for windows in _LEAST_WINDOWS)


def ms_ssim_betas(size: int) -> tuple[float, ...]:
    """The weights of the finest scales that fit into ``size`` px, with sum 1 as for all five."""
    betas = BETAS[: ms_ssim_scales(size)]
    return tuple(beta / sum(betas) * sum(BETAS) for beta in betas)


def ms_ssim(a_PHWC: Images, b_PHWC: Images, *, device: torch.device) -> Values:
    """Multi-scale structural similarity (Wang, Simoncelli & Bovik, Asilomar 2003, equation 7).

    Images below 176 px use as many of the finest scales as fit (``ms_ssim_scales``), with the weights renormalised:
    such values compare with one another, not with those of five scales. Negative terms count as 0.
    """
    side = min(a_PHWC.shape[1:3])
    require_size(side, least=WINDOW)
    values_P = multiscale_structural_similarity_index_measure(
        to_unit(a_PHWC, device=device),
        to_unit(b_PHWC, device=device),
        data_range=1.0,
        reduction="none",
        betas=ms_ssim_betas(side),
        normalize="relu",
    )
    return _values(values_P)


def lpips(a_PHWC: Images, b_PHWC: Images, *, network: LPIPS, device: torch.device) -> Values:
    """Learned perceptual distance (Zhang et al. 2018), 0 for equal images; ``network`` lies on ``device``."""
    with torch.inference_mode():
        distance_P = network(to_unit(a_PHWC, device=device) * 2 - 1, to_unit(b_PHWC, device=device) * 2 - 1)
    return _values(distance_P)


def _values(values_P: Tensor) -> Values:
    return values_P.reshape(-1).cpu().double().numpy()
