"""Features that a network computes from pictures, and other views of pictures: flipped, restained, cropped.

Legend of shapes: N patches, V views, B a block of pictures, H x W px, D features, S random numbers behind a stain.
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
from histoloom.clustering.views import crop
from histoloom.run.stage import StageContext
from histoloom.seeding import numpy_generator
from histoloom.slides.patch_set import PatchSet
from histoloom.slides.stain.augment import STAIN_DRAWS, restained
from histoloom.training.loop import StepContext

LEAST_CROP = 0.6


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


def random_view(x_N3HW: Tensor, *, context: StepContext, strength: float) -> Tensor:
    """One view of each picture, float -1..1: turned, a crop of at least 0.6 of its side, in another stain."""
    N = len(x_N3HW)
    x_N3HW = dihedral(x_N3HW, context.randint(DIHEDRAL, (N,)))
    x_N3HW = crop(x_N3HW, place_N3=context.rand((N, 3)), least=LEAST_CROP)
    return restained(x_N3HW, draws_N10=strength * context.randn((N, STAIN_DRAWS)))


def views_of(images_NHW3: np.ndarray, *, rows_N: np.ndarray, views: int, strength: float, seed: int) -> np.ndarray:
    """Each picture turned and in other stains, uint8 (N, V, H, W, 3).

    The views of a picture depend on the seed and on its row alone, never on the rows beside it.
    """
    x_N3HW = to_float(torch.from_numpy(images_NHW3))
    made = []
    for number in range(views):
        streams = [numpy_generator(seed, "clusters", "views", number, int(row)) for row in rows_N]
        turns_N = torch.tensor([int(stream.integers(DIHEDRAL)) for stream in streams])
        draws_N10 = torch.from_numpy(np.stack([stream.standard_normal(STAIN_DRAWS) for stream in streams])).float()
        made.append(to_uint8(restained(dihedral(x_N3HW, turns_N), draws_N10=strength * draws_N10)).numpy())
    return np.stack(made, axis=1)
