"""Other views of whole pictures: turned and flipped, in another stain, cropped.

Legend of shapes: N patches, V views of each, H x W px, S random numbers behind a stain.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from histoloom.autoencoder.augment import DIHEDRAL, dihedral
from histoloom.autoencoder.vqgan import to_float, to_uint8
from histoloom.clustering.views import crop
from histoloom.seeding import numpy_generator
from histoloom.slides.stain.augment import STAIN_DRAWS, restained
from histoloom.training.loop import StepContext

LEAST_CROP = 0.6


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
