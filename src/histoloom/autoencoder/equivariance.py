"""Latents that turn and shrink as their images do (EQ-VAE: Kouzelis et al. 2025).

A VQ-GAN that is trained on reconstructions alone may hide detail in latents that are nearly white noise over the
positions: hard work for the diffusion model. Where the decoder also has to make the turned, smaller image of turned,
smaller latents, they stay pictures of the tissue. Shapes: N images, h x w latent positions, f pixels a position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from histoloom.autoencoder.augment import DIHEDRAL, dihedral
from histoloom.training.loop import StepContext

SHARES = (1.0, 0.75, 0.5)
"""sides of the smaller images, of the whole"""


@dataclass(frozen=True)
class Change:
    """``choice_N``: one of the eight dihedral copies for each image; ``share``: of the side, the same for all."""

    choice_N: Tensor
    share: float

    @staticmethod
    def drawn(context: StepContext, *, n: int, probability: float) -> Change | None:
        """A change of this step's whole batch, or none; ``n`` images are of this micro-batch."""
        happens, which = torch.rand(2, generator=context.generator).tolist()
        choice_N = context.randint(DIHEDRAL, (n,))
        return Change(choice_N, SHARES[int(which * len(SHARES))]) if happens < probability else None

    def of_latents(self, z_NChw: Tensor) -> Tensor:
        """The latents, turned and brought to a smaller grid by a linear filter."""
        return self._shrunk(dihedral(z_NChw, self.choice_N), side=self._side(z_NChw.shape[2]))

    def of_images(self, x_NCHW: Tensor, *, factor: int) -> Tensor:
        """The images, turned and made smaller, as large as those of the changed latents."""
        side = self._side(x_NCHW.shape[2] // factor) * factor
        return self._shrunk(dihedral(x_NCHW, self.choice_N), side=side)

    def _side(self, positions: int) -> int:
        return max(1, round(self.share * positions))

    @staticmethod
    def _shrunk(x_NCHW: Tensor, *, side: int) -> Tensor:
        if side == x_NCHW.shape[2]:
            return x_NCHW
        return F.interpolate(x_NCHW.float(), size=(side, side), mode="bilinear", antialias=True)
