"""A perceptual loss that needs no weights: ``autoencoder.perceptual=pyramid``.

It is Histoloom's own, made from known parts: the Laplacian pyramid of Burt & Adelson (1983, IEEE Trans. Commun.
31(4), 532) and a comparison of local contrast. It is no published metric and is never reported as one.

Shapes: N images, C channels, H x W px. Images are in -1..1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
_LEAST_SIDE = 8


class PyramidLoss(nn.Module):
    """How far two images' edges and textures are apart, over octaves of scale.

    For each band of the Laplacian pyramid two terms are added: the mean absolute difference of the bands (edges in
    the wrong place) and, ``texture`` times, that of their local contrast, the mean absolute value of the band over
    8 x 8 of its own pixels (texture that is missing, wherever its grains lie). Under plain L1 a smooth grey is the
    best guess for an unpredictable texture; with ``texture`` at 1 a texture of other grains is the better one.
    """

    kernel_K: Tensor

    def __init__(self, *, levels: int = 4, texture: float = 1.0) -> None:
        super().__init__()
        self.levels = levels
        self.texture = texture
        self.register_buffer("kernel_K", torch.tensor(_BINOMIAL), persistent=False)

    def forward(self, x_NCHW: Tensor, y_NCHW: Tensor) -> Tensor:
        """Distances (N,), 0 for equal images; images too small for a level leave it out."""
        distance_N = x_NCHW.new_zeros(len(x_NCHW))
        for bx_NCHW, by_NCHW in zip(self.bands(x_NCHW), self.bands(y_NCHW), strict=True):
            distance_N = distance_N + _l1(bx_NCHW, by_NCHW)
            distance_N = distance_N + self.texture * _l1(_contrast(bx_NCHW), _contrast(by_NCHW))
        return distance_N

    def bands(self, x_NCHW: Tensor) -> list[Tensor]:
        """The Laplacian pyramid's bands, finest first, without its smooth rest."""
        bands = []
        for _ in range(self.levels):
            if min(x_NCHW.shape[-2:]) < _LEAST_SIDE:
                break
            smooth_NCHW = self._smooth(x_NCHW)
            bands.append(x_NCHW - smooth_NCHW)
            x_NCHW = smooth_NCHW[..., ::2, ::2]
        return bands

    def _smooth(self, x_NCHW: Tensor) -> Tensor:
        channels = x_NCHW.shape[1]
        kernel_C11K = self.kernel_K.to(x_NCHW.dtype).expand(channels, 1, 1, -1)
        x_NCHW = F.pad(x_NCHW, (2, 2, 2, 2), mode="reflect")
        x_NCHW = F.conv2d(x_NCHW, kernel_C11K, groups=channels)
        return F.conv2d(x_NCHW, kernel_C11K.transpose(2, 3), groups=channels)


def _contrast(band_NCHW: Tensor) -> Tensor:
    return F.avg_pool2d(band_NCHW.abs(), _LEAST_SIDE, ceil_mode=True)


def _l1(x_NCHW: Tensor, y_NCHW: Tensor) -> Tensor:
    return (x_NCHW - y_NCHW).abs().mean(dim=(1, 2, 3))
