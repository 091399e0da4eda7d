"""Statistics of colour, texture and shape of an image, each with a name: features that need no trained weights.

They follow Portilla & Simoncelli (2000): a pyramid of bands of detail (here the Laplacian pyramid of Burt & Adelson
1983, of brightness and of two differences of colours), how strong each band is and how its values are distributed, and
how the strength of a band goes together with that of the next coarser one and of the other colours. Two kinds of
statistics see shape, which those of bands do not: the coherence of directions (Bigun & Granlund 1987), high in fibres;
and the perimeter and the Euler number of the darkest parts at several shares of the area (Minkowski functionals, Mantz
et al. 2008), which tell open from closed walls and one round nucleus from many specks.

Texture and shape are measured at equal colour and contrast, since those differ from slide to slide.

Shapes: B images of H x W px, L bands, F features.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from histoloom.autoencoder.vqgan import to_float
from histoloom.evaluation.extractors import Extractor
from histoloom.training.transfers import put_array

MAX_BANDS = 5
N_COLOUR = 10
"""features of colour and contrast, the first of all; the others are of texture and shape"""
MIN_SIDE = 16
"""px; the smallest side that has a band"""
CHANNELS = ("brightness", "red against blue", "green against red and blue")
DARK_SHARES = (0.05, 0.15, 0.3, 0.5, 0.7, 0.85)
"""shares of the image's area that count as its darkest part"""
SHAPE_SCALES = 2
"""octaves at which shapes are measured, from the image's own pixels on"""
_TINY = 1e-4  # added to strengths before their logarithm: an 80th of a grey level
_NOISE = 0.02  # added to contrasts: 2.5 grey levels, so that empty glass does not become texture


def bands_of(side: int) -> int:
    """How many bands an image of this smaller side has: the coarsest has at least 8 px."""
    return min(MAX_BANDS, int(np.log2(side / 8)))


@lru_cache
def feature_names(side: int, mpp: float | None = None) -> tuple[str, ...]:
    """The name of each feature of images of this smaller side in px; sizes are in um where ``mpp`` (um/px) is known."""
    scale, unit = (1.0, "px") if mpp is None else (mpp, "µm")
    bands = [f"detail of {scale * 2 ** (band + 1):.3g} {unit}" for band in range(bands_of(side))]
    names = [f"{what} of {channel}" for what in ("mean", "spread") for channel in CHANNELS]
    names += [f"{quantile:.0%} quantile of brightness" for quantile in _QUANTILES]
    for statistic in ("strength", "skewness", "sparseness"):
        names += [f"{statistic} of {band}, {channel}" for band in bands for channel in CHANNELS]
    names += [f"{first} going with {second}, {channel}" for first, second in pairwise(bands) for channel in CHANNELS]
    names += [f"{band}, {CHANNELS[a]} going with {CHANNELS[b]}" for band in bands for a, b in _CHANNEL_PAIRS]
    names += [f"common direction at {band}" for band in bands]
    for octave in range(SHAPE_SCALES):
        size = f"{scale * 2**octave:.3g} {unit}"
        for what in ("perimeter", "separate parts less holes"):
            names += [f"{what} of the darkest {share:.0%} at {size}" for share in DARK_SHARES]
    return tuple(names)


_QUANTILES = (0.05, 0.25, 0.75, 0.95)
_CHANNEL_PAIRS = ((0, 1), (0, 2), (1, 2))


class TextureStatistics(Extractor):
    """The features of this module, float32 (N, F), named by ``feature_names`` of the images' smaller side."""

    name = "texture statistics"
    digest = "texture-statistics-1"
    min_size = MIN_SIDE

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def block_features(self, images_BHW3: np.ndarray) -> Tensor:
        return texture_statistics(to_float(put_array(images_BHW3, self.device)))


@torch.no_grad()
def texture_statistics(x_B3HW: Tensor) -> Tensor:
    """The features of float images -1..1, (B, F)."""
    red, green, blue = x_B3HW.unbind(1)
    x_B3HW = torch.stack([(red + green + blue) / 3, (red - blue) / 2, (2 * green - red - blue) / 4], dim=1)
    n_bands = bands_of(min(x_B3HW.shape[2:]))

    # Colours, as they are
    pixels_B3P = x_B3HW.flatten(2)
    spread_B3 = pixels_B3P.std(2)
    quantiles = torch.quantile(pixels_B3P[:, 0], pixels_B3P.new_tensor(_QUANTILES), dim=1).T
    features = [pixels_B3P.mean(2), (spread_B3 + _TINY).log(), quantiles]

    # Texture and shape at equal colour and contrast, which stains change
    x_B3HW = (x_B3HW - pixels_B3P.mean(2)[..., None, None]) / (spread_B3 + _NOISE)[..., None, None]

    # The pyramid: each band is what the next coarser level does not hold
    levels, bands = [x_B3HW], []
    for _ in range(n_bands):
        coarser = F.avg_pool2d(_blur(levels[-1]), 2, ceil_mode=True)
        finer = F.interpolate(coarser, size=levels[-1].shape[2:], mode="bilinear", align_corners=False)
        bands.append(levels[-1] - finer)
        levels.append(coarser)
    strength = [band.abs().mean((2, 3)) for band in bands]
    spread = [band.square().mean((2, 3)).sqrt() + _TINY for band in bands]
    features += [(s + _TINY).log() for s in strength]
    features += [(band.pow(3).mean((2, 3)) / s.pow(3)).clamp(-5, 5) for band, s in zip(bands, spread, strict=True)]
    features += [(mean + _TINY).div(s).log() for mean, s in zip(strength, spread, strict=True)]

    # Strong detail where the coarser band is strong, and where other colours are
    sizes = [band.abs() for band in bands]
    for finer, coarser in pairwise(sizes):
        features.append(_correlation(F.adaptive_avg_pool2d(finer, (coarser.shape[2], coarser.shape[3])), coarser))
    for band in bands:
        features.append(torch.stack([_correlation(band[:, a], band[:, b]) for a, b in _CHANNEL_PAIRS], dim=1))

    features.append(torch.stack([coherence(level[:, 0]) for level in levels[:n_bands]], dim=1))
    features += [dark_shapes(level[:, 0]) for level in levels[:SHAPE_SCALES]]
    return torch.cat(features, dim=1)


def _blur(x_BCHW: Tensor) -> Tensor:
    """Smoothed by the binomial filter (1, 4, 6, 4, 1) / 16; sums are faster than convolutions of one channel."""
    x = F.pad(x_BCHW, (2, 2, 2, 2), mode="reflect")
    for axis in (-2, -1):
        size = x.shape[axis] - 4
        far, near, own = (
            x.narrow(axis, 0, size) + x.narrow(axis, 4, size),
            x.narrow(axis, 1, size) + x.narrow(axis, 3, size),
            x.narrow(axis, 2, size),
        )
        x = far.add(near, alpha=4).add_(own, alpha=6).div_(16)
    return x


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation over the two last axes; 0 where one of the two does not vary."""
    first = first - first.mean((-2, -1), keepdim=True)
    second = second - second.mean((-2, -1), keepdim=True)
    covariance = (first * second).mean((-2, -1))
    return covariance / (first.square().mean((-2, -1)) * second.square().mean((-2, -1)) + _TINY**2).sqrt()


def coherence(x_BHW: Tensor) -> Tensor:
    """How much the gradients of a neighbourhood share a direction, 0..1, mean over the image by their strength."""
    down = (x_BHW[:, 2:, 1:-1] - x_BHW[:, :-2, 1:-1]) / 2
    right = (x_BHW[:, 1:-1, 2:] - x_BHW[:, 1:-1, :-2]) / 2
    tensor = torch.stack([down.square(), right.square(), down * right], dim=1)
    dd, rr, dr = _blur(_blur(tensor)).unbind(1)
    anisotropy = ((dd - rr).square() + 4 * dr.square()).sqrt()
    return anisotropy.sum((1, 2)) / ((dd + rr).sum((1, 2)) + _TINY)


def dark_shapes(x_BHW: Tensor) -> Tensor:
    """Perimeter and Euler number of the darkest parts, for each pixel: (B, 2 shares).

    Pixels that touch at a side belong together; dark parts that touch at a corner alone are separate.
    """
    shares = x_BHW.new_tensor(DARK_SHARES)
    limits_SB = torch.quantile(x_BHW.flatten(1), shares, dim=1)
    dark_BSHW = (x_BHW[:, None] <= limits_SB.T[:, :, None, None]).float()
    across, down = dark_BSHW[..., :, 1:] * dark_BSHW[..., :, :-1], dark_BSHW[..., 1:, :] * dark_BSHW[..., :-1, :]
    square = across[..., 1:, :] * across[..., :-1, :]
    area, pairs, squares = dark_BSHW.sum((2, 3)), across.sum((2, 3)) + down.sum((2, 3)), square.sum((2, 3))
    n_pixels = x_BHW[0].numel()
    perimeter = (4 * area - 2 * pairs) / n_pixels
    # Vertices less edges plus faces of the graph of dark pixels and their neighbours
    euler = (area - pairs + squares) / n_pixels
    return torch.cat([perimeter, 100 * euler], dim=1)
