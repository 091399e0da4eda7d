"""Means and deviations of the latents over a patch's positions: what is in it, not where.

Legend of shapes: N patches, V views, S stains beside the patch's own, C x h x w latents, D = 2 C.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from histoloom.clustering.features import latents as latents_kind
from histoloom.clustering.features.base import Features, Kind, Sources, blockwise
from histoloom.clustering.features.validity import pooled
from histoloom.clustering.views import LEAST_CROP
from histoloom.run.stage import StageContext

CORNERS = 4


class Pooled(Features):
    """Moments of the normalised latents. Views: each stain whole, and the four corners of each and of the patch."""

    def __init__(self, latents: Features) -> None:
        self.latents = latents

    @property
    def shape(self) -> tuple[int, ...]:
        return (2 * self.latents.shape[0],)

    @property
    def views(self) -> int:
        return cropped_views(self.latents.views)

    def of_rows(self, rows_N: np.ndarray) -> Tensor:
        return _pooled(self.latents.of_rows(rows_N))

    def views_of_rows(self, rows_N: np.ndarray) -> Tensor:
        own_N1Chw = self.latents.of_rows(rows_N)[:, None]
        stains_NSChw = self.latents.views_of_rows(rows_N)
        return torch.stack([_pooled(z_NChw) for z_NChw in with_corners(torch.cat([own_N1Chw, stains_NSChw], 1))], dim=1)

    def of_images(self, images_NHW3: np.ndarray) -> Tensor:
        return _pooled(self.latents.of_images(images_NHW3))

    def save(self, folder: Path) -> dict[str, Any]:
        return self.latents.save(folder)


def _pooled(z_NChw: Tensor) -> Tensor:
    return blockwise(z_NChw, function=pooled, device=z_NChw.device)


def cropped_views(stains: int) -> int:
    """How many views ``with_corners`` makes of a patch in its own and so many other stains."""
    return stains + CORNERS * (1 + stains)


def with_corners(x_NSChw: Tensor) -> list[Tensor]:
    """The stains after the first, then the four corners of every stain: V maps (N, C, h', w').

    A corner has a side of 0.6, as the smallest crop that a map's own views have (``clustering.views``).
    """
    h, w = x_NSChw.shape[-2:]
    high, wide = int(np.ceil(LEAST_CROP * h)), int(np.ceil(LEAST_CROP * w))
    stains = list(x_NSChw.unbind(1))
    corners = [
        x_NChw[..., top : top + high, left : left + wide]
        for x_NChw in stains
        for top in (0, h - high)
        for left in (0, w - wide)
    ]
    return [*stains[1:], *corners]


def make(context: StageContext) -> Features:
    """Pooled latents of a run."""
    return Pooled(latents_kind.make(context))


def load(sources: Sources) -> Features:
    """The same, for prediction."""
    return Pooled(latents_kind.load(sources))


KIND = Kind(make, load)
