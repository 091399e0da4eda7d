"""How often a patch uses each code of the VQ-GAN, as square roots of shares (Hellinger).

Legend of shapes: N patches, V views, S stains beside the patch's own, C x h x w latents, M codes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.features.base import Features, Kind, Sources, blockwise
from histoloom.clustering.features.latents import Encoder
from histoloom.clustering.features.pooled import cropped_views, with_corners
from histoloom.clustering.features.validity import hellinger
from histoloom.run.stage import StageContext
from histoloom.training.devices import accelerator


class Codes(Features):
    """Histograms of codes. Views as of pooled latents: other stains, and corners."""

    def __init__(self, latents: LatentSet, *, encoder: Encoder) -> None:
        self.latents = latents
        self.encoder = encoder

    @property
    def shape(self) -> tuple[int, ...]:
        return (int(self.latents.histograms.shape[1]),)

    @property
    def views(self) -> int:
        stains = self.latents.stain_views
        return cropped_views(0 if stains is None else stains.shape[1])

    def of_rows(self, rows_N: np.ndarray) -> Tensor:
        return hellinger(torch.from_numpy(np.asarray(self.latents.histograms[rows_N])))

    def views_of_rows(self, rows_N: np.ndarray) -> Tensor:
        z_NSChw = self.latents.raw(rows_N)[:, None]
        if (stains := self.latents.stain_views) is not None:
            others_NSChw = torch.from_numpy(np.asarray(stains[rows_N], dtype=np.float32))
            z_NSChw = torch.cat([z_NSChw, others_NSChw], dim=1)
        codes_NShw = torch.stack([self._codes(z_NChw.to(self.encoder.device)) for z_NChw in z_NSChw.unbind(1)], dim=1)
        return torch.stack([self._used(codes_Nhw) for codes_Nhw in with_corners(codes_NShw[:, :, None])], dim=1).cpu()

    def of_images(self, images_NHW3: np.ndarray) -> Tensor:
        return blockwise(torch.from_numpy(images_NHW3), function=self._of_block, device=self.encoder.device)

    def save(self, folder: Path) -> dict[str, Any]:  # noqa: ARG002 - other kinds have something to write
        return {}

    def _of_block(self, x_BHW3: Tensor) -> Tensor:
        return self._used(self._codes(self.encoder.encode(x_BHW3)))

    @torch.no_grad()
    def _codes(self, z_NChw: Tensor) -> Tensor:
        """The code of each place, int64 (N, h, w)."""
        return self.encoder.model.quantize(z_NChw).indices_NHW

    def _used(self, codes_Nhw: Tensor) -> Tensor:
        flat_NP = codes_Nhw.flatten(1)
        counts_NM = flat_NP.new_zeros((len(flat_NP), *self.shape)).scatter_add_(1, flat_NP, torch.ones_like(flat_NP))
        return hellinger(counts_NM.float() / flat_NP.shape[1])


def make(context: StageContext) -> Features:
    """Histograms of a run's codes."""
    encoder = Encoder(context.inputs["autoencoder"], device=accelerator(context.config.runtime).device)
    return Codes(LatentSet.open(context.inputs["latents"]), encoder=encoder)


def load(sources: Sources) -> Features:
    """The same, for prediction."""
    encoder = Encoder(sources.inputs["autoencoder"], device=sources.device)
    return Codes(LatentSet.open(sources.inputs["latents"]), encoder=encoder)


KIND = Kind(make, load)
