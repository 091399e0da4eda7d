"""Features that a network computes from images, and other views of images: flipped, restained, cropped.

Shapes: N patches, V views, B a block of images, H x W px, D features.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from histoloom.autoencoder.augment import DIHEDRAL, dihedral
from histoloom.autoencoder.vqgan import to_float, to_uint8
from histoloom.clustering.features.base import Features, blockwise
from histoloom.run.stage import StageContext
from histoloom.seeding import numpy_generator
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.stain.augment import STAIN_DRAWS, restained


@dataclass(frozen=True)
class PatchImages:
    """A run's patches, and how their views are made: as many, and as far restained, as those of latents."""

    folder: Path
    views: int
    stain_jitter: float
    seed: int

    @staticmethod
    def of(context: StageContext) -> PatchImages:
        """The patches of a run."""
        config = context.config
        return PatchImages(
            context.inputs["patches"], config.latents.stain_views, config.latents.stain_jitter, config.seed
        )

    @cached_property
    def patches(self) -> PatchSet:
        return PatchSet.open(self.folder)


class ImageFeatures(Features):
    """What kinds share that only need ``of_block``; ``images`` is None where they only predict."""

    def __init__(self, *, images: PatchImages | None, device: torch.device) -> None:
        self.images = images
        self.device = device

    @abstractmethod
    def of_block(self, x_BHW3: Tensor) -> Tensor:
        """Of one block of images, uint8 (B, H, W, 3) on the device; float (B, D)."""

    @property
    def views(self) -> int:
        return 0 if self.images is None else self.images.views

    def compute_rows(self, rows_N: np.ndarray) -> Tensor:
        assert self.images is not None, "rows are computed in the stage, which has its patches"
        return self.compute_images(self.images.patches.images(rows_N)).cpu()

    def compute_views(self, rows_N: np.ndarray) -> Tensor:
        assert self.images is not None, "rows are computed in the stage, which has its patches"
        source = self.images
        views_NVHW3 = views_of(
            source.patches.images(rows_N),
            rows_N=rows_N,
            views=source.views,
            strength=source.stain_jitter,
            seed=source.seed,
        )
        flat_MD = self.compute_images(views_NVHW3.reshape(-1, *views_NVHW3.shape[2:])).cpu()
        return flat_MD.view(len(rows_N), source.views, -1)

    def compute_images(self, images_NHW3: np.ndarray) -> Tensor:
        return blockwise(torch.from_numpy(images_NHW3), function=self.of_block, device=self.device)


def views_of(images_NHW3: np.ndarray, *, rows_N: np.ndarray, views: int, strength: float, seed: int) -> np.ndarray:
    """Each image rotated or flipped, and restained, uint8 (N, V, H, W, 3).

    The views of an image depend on the seed and on its row alone, never on the rows beside it.
    """
    x_N3HW = to_float(torch.from_numpy(images_NHW3))
    views_NHW3 = []
    for number in range(views):
        streams = [numpy_generator(seed, "clusters", "views", number, int(row)) for row in rows_N]
        elements_N = torch.tensor([int(stream.integers(DIHEDRAL)) for stream in streams])  # of the dihedral group
        draws_N10 = torch.from_numpy(np.stack([stream.standard_normal(STAIN_DRAWS) for stream in streams])).float()
        view_N3HW = restained(dihedral(x_N3HW, elements_N), draws_N10=strength * draws_N10)
        views_NHW3.append(to_uint8(view_N3HW).numpy())
    return np.stack(views_NHW3, axis=1)
