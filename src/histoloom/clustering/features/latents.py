"""The VQ-GAN's latents themselves, place by place: the default. Nothing is saved, for other stages hold it all.

Legend of shapes: N patches, V stains beside the patch's own, C x h x w latents, H x W px.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from histoloom.autoencoder.latents import LatentSet
from histoloom.autoencoder.vqgan import Autoencoder, to_float
from histoloom.clustering.features.base import Features, Kind, Sources, blockwise
from histoloom.run.stage import StageContext
from histoloom.training.devices import accelerator


class Encoder:
    """Latents of any pictures: the run's VQ-GAN, loaded when it is first asked for."""

    def __init__(self, folder: Path | None, *, device: torch.device) -> None:
        self.folder = folder
        self.device = device
        self._model: Autoencoder | None = None

    @property
    def model(self) -> Autoencoder:
        """The VQ-GAN, on the device, in evaluation mode."""
        if self._model is None:
            assert self.folder is not None, "the stage autoencoder is among the inputs of whoever encodes"
            self._model = Autoencoder.load(self.folder).to(self.device)
        return self._model

    def latents(self, images_NHW3: np.ndarray) -> Tensor:
        """Latents before quantisation, not normalised, (N, C, h, w)."""
        return blockwise(torch.from_numpy(images_NHW3), function=self.encode, device=self.device)

    def encode(self, x_BHW3: Tensor) -> Tensor:
        """Latents of one block of pictures on the device, uint8 (B, H, W, 3)."""
        return self.model.encode(to_float(x_BHW3)).float()


class Latents(Features):
    """Normalised latents."""

    def __init__(self, latents: LatentSet, *, encoder: Encoder) -> None:
        self.latents = latents
        self.encoder = encoder

    @property
    def shape(self) -> tuple[int, ...]:
        return self.latents.shape

    @property
    def views(self) -> int:
        stains = self.latents.stain_views
        return 0 if stains is None else stains.shape[1]

    def of_rows(self, rows_N: np.ndarray) -> Tensor:
        return self.latents.normalised(rows_N)

    def views_of_rows(self, rows_N: np.ndarray) -> Tensor:
        return self.latents.with_stain_views(rows_N)[:, 1:]

    def of_images(self, images_NHW3: np.ndarray) -> Tensor:
        return self.latents.moments.normalise(self.encoder.latents(images_NHW3))

    def save(self, folder: Path) -> dict[str, Any]:  # noqa: ARG002 - other kinds have something to write
        return {}


def make(context: StageContext) -> Features:
    """The latents of a run."""
    device = accelerator(context.config.runtime).device
    return Latents(
        LatentSet.open(context.inputs["latents"]),
        encoder=Encoder(context.inputs.get("autoencoder"), device=device),
    )


def load(sources: Sources) -> Features:
    """The same, for prediction."""
    encoder = Encoder(sources.inputs["autoencoder"], device=sources.device)
    return Latents(LatentSet.open(sources.inputs["latents"]), encoder=encoder)


KIND = Kind(make, load)
