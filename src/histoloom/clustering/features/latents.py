"""Features from the VQ-GAN: the latents themselves (the default), their moments, and histograms of codes.

Nothing of these is saved, for other stages hold it all.
Shapes: N patches, V views, S stains besides the patch's own, C x h x w latents, H x W px, D = 2 C moments, M codes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from histoloom.autoencoder.latents import LatentSet
from histoloom.autoencoder.vqgan import Autoencoder, to_float
from histoloom.clustering.features.base import EncoderRecord, Features, Sources, blockwise
from histoloom.clustering.views import LEAST_CROP
from histoloom.run.stage import StageContext
from histoloom.training.devices import accelerator

CORNERS = 4


class LatentEncoder:
    """Latents of any images: the run's VQ-GAN, loaded at its first use."""

    def __init__(self, folder: Path | None, *, device: torch.device) -> None:
        self.folder = folder
        self.device = device
        self._model: Autoencoder | None = None

    @property
    def model(self) -> Autoencoder:
        """The VQ-GAN, on the device, in evaluation mode."""
        if self._model is None:
            assert self.folder is not None, "whoever encodes has the stage autoencoder among its inputs"
            self._model = Autoencoder.load(self.folder).to(self.device)
        return self._model

    def latents(self, images_NHW3: np.ndarray) -> Tensor:
        """Latents before quantisation, not normalised, (N, C, h, w)."""
        return blockwise(torch.from_numpy(images_NHW3), function=self.encode, device=self.device)

    def encode(self, x_BHW3: Tensor) -> Tensor:
        """Latents of one block of images on the device, uint8 (B, H, W, 3)."""
        return self.model.latents(to_float(x_BHW3))


class LatentMaps(Features):
    """Normalised latents, position by position."""

    def __init__(self, latents: LatentSet, *, encoder: LatentEncoder) -> None:
        self.latents = latents
        self.encoder = encoder

    @classmethod
    def make(cls, context: StageContext) -> Features:
        device = accelerator(context.config.runtime).device
        encoder = LatentEncoder(context.inputs.get("autoencoder"), device=device)
        return cls(LatentSet.open(context.inputs["latents"]), encoder=encoder)

    @classmethod
    def load(cls, sources: Sources) -> Features:
        encoder = LatentEncoder(sources.inputs["autoencoder"], device=sources.device)
        return cls(LatentSet.open(sources.inputs["latents"]), encoder=encoder)

    def save(self, folder: Path) -> EncoderRecord:  # noqa: ARG002 - other kinds have something to write
        return EncoderRecord()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.latents.shape

    @property
    def views(self) -> int:
        stains = self.latents.stain_views
        return 0 if stains is None else stains.shape[1]

    def compute_rows(self, rows_N: np.ndarray) -> Tensor:
        return self.latents.normalised(rows_N)

    def compute_views(self, rows_N: np.ndarray) -> Tensor:
        return self.latents.with_stain_views(rows_N)[:, 1:]

    def compute_images(self, images_NHW3: np.ndarray) -> Tensor:
        return self.latents.moments.normalise(self.encoder.latents(images_NHW3))


class UnscaledLatents(LatentMaps):
    """Latents as the autoencoder gives them, for clusters that are trained with the diffusion model."""

    def compute_rows(self, rows_N: np.ndarray) -> Tensor:
        return self.latents.raw(rows_N)

    def compute_images(self, images_NHW3: np.ndarray) -> Tensor:
        return self.encoder.latents(images_NHW3)


class Pooled(LatentMaps):
    """Moments of the normalised latents. Views: each other stain, and the four corners of every stain."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (2 * self.latents.shape[0],)

    @property
    def views(self) -> int:
        return views_with_corners(super().views)

    def compute_rows(self, rows_N: np.ndarray) -> Tensor:
        return _pooled(super().compute_rows(rows_N))

    def compute_views(self, rows_N: np.ndarray) -> Tensor:
        views = with_corners(self.latents.with_stain_views(rows_N))
        return torch.stack([_pooled(z_NChw) for z_NChw in views], dim=1)

    def compute_images(self, images_NHW3: np.ndarray) -> Tensor:
        return _pooled(super().compute_images(images_NHW3))


class Codes(LatentMaps):
    """How often a patch uses each code, as square roots of shares. Views as of pooled latents."""

    @property
    def shape(self) -> tuple[int, ...]:
        return (int(self.latents.histograms.shape[1]),)

    @property
    def views(self) -> int:
        return views_with_corners(super().views)

    def compute_rows(self, rows_N: np.ndarray) -> Tensor:
        return hellinger(torch.from_numpy(np.asarray(self.latents.histograms[rows_N])))

    def compute_views(self, rows_N: np.ndarray) -> Tensor:
        z_NSChw = self.latents.raw(rows_N)[:, None]
        if (stains := self.latents.stain_views) is not None:
            others_NSChw = torch.from_numpy(np.asarray(stains[rows_N], dtype=np.float32))
            z_NSChw = torch.cat([z_NSChw, others_NSChw], dim=1)
        codes_NShw = torch.stack([self._codes(z_NChw.to(self.encoder.device)) for z_NChw in z_NSChw.unbind(1)], dim=1)
        views = with_corners(codes_NShw[:, :, None])
        return torch.stack([self._histogram(codes_N1hw) for codes_N1hw in views], dim=1).cpu()

    def compute_images(self, images_NHW3: np.ndarray) -> Tensor:
        def of_block(x_BHW3: Tensor) -> Tensor:
            return self._histogram(self._codes(self.encoder.encode(x_BHW3)))

        return blockwise(torch.from_numpy(images_NHW3), function=of_block, device=self.encoder.device)

    @torch.no_grad()
    def _codes(self, z_NChw: Tensor) -> Tensor:
        """The code of each position, int64 (N, h, w)."""
        return self.encoder.model.quantize(z_NChw).indices_NHW

    def _histogram(self, codes_Nhw: Tensor) -> Tensor:
        flat_NP = codes_Nhw.flatten(1)
        counts_NM = flat_NP.new_zeros((len(flat_NP), *self.shape)).scatter_add_(1, flat_NP, torch.ones_like(flat_NP))
        return hellinger(counts_NM.float() / flat_NP.shape[1])


def pooled(z_NChw: Tensor) -> Tensor:
    """Mean and deviation of each channel over a patch's positions, (N, 2 C): what is in it, not where."""
    return torch.cat([z_NChw.mean(dim=(2, 3)), z_NChw.std(dim=(2, 3), correction=0)], dim=1)


def _pooled(z_NChw: Tensor) -> Tensor:
    return blockwise(z_NChw, function=pooled, device=z_NChw.device)


def hellinger(histogram_NM: Tensor) -> Tensor:
    """Square roots of shares, (N, M): Euclidean distance between them is the Hellinger distance (times sqrt 2)."""
    return histogram_NM.sqrt()


def views_with_corners(stains: int) -> int:
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
