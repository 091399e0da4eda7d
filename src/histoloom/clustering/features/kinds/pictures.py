"""Features that a network reads off the pictures, whatever network it is.

Legend of shapes: N patches, V views, B a block of pictures, H x W px, D features.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from histoloom.clustering.features.kinds.base import Features, blockwise
from histoloom.clustering.features.picture_views import views_of
from histoloom.run.stage import StageContext
from histoloom.slides.patch_set import PatchSet


@dataclass(frozen=True)
class Pictures:
    """Where a run's patches lie, and how their views are made: as many, and as far restained, as those of latents."""

    folder: Path
    views: int
    strength: float
    seed: int

    @staticmethod
    def of(context: StageContext) -> Pictures:
        """The pictures of a run."""
        latents = context.config.latents
        return Pictures(context.inputs["patches"], latents.stain_views, latents.stain_jitter, seed=context.config.seed)

    @cached_property
    def patches(self) -> PatchSet:
        return PatchSet.open(self.folder)


class PictureFeatures(Features):
    """What is shared by kinds that only need ``of_block``; ``pictures`` is None where they only predict."""

    def __init__(self, *, pictures: Pictures | None, device: torch.device) -> None:
        self.pictures = pictures
        self.device = device

    @abstractmethod
    def of_block(self, x_BHW3: Tensor) -> Tensor:
        """Of one block of pictures, uint8 (B, H, W, 3) on the device; float (B, D)."""

    @property
    def views(self) -> int:
        return 0 if self.pictures is None else self.pictures.views

    def of_rows(self, rows_N: np.ndarray) -> Tensor:
        return self.of_images(self._pictures.patches.images(rows_N)).cpu()

    def views_of_rows(self, rows_N: np.ndarray) -> Tensor:
        given = self._pictures
        seen_NVHW3 = views_of(
            given.patches.images(rows_N), rows_N=rows_N, views=given.views, strength=given.strength, seed=given.seed
        )
        flat_MD = self.of_images(seen_NVHW3.reshape(-1, *seen_NVHW3.shape[2:])).cpu()
        return flat_MD.view(len(rows_N), given.views, -1)

    def of_images(self, images_NHW3: np.ndarray) -> Tensor:
        return blockwise(torch.from_numpy(images_NHW3), function=self.of_block, device=self.device)

    @property
    def _pictures(self) -> Pictures:
        assert self.pictures is not None, "rows are asked for in the stage, which gives its patches"
        return self.pictures
