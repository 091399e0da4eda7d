"""Two ways to see the same patch: in another stain, rotated or flipped, cropped, its channels stretched and shifted.

Other stains are encoded beforehand (``histoloom.slides.stain.augment``); all else happens in latent space.
Shapes: N patches, V stains, C x h x w normalised latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from histoloom.autoencoder.augment import DIHEDRAL, dihedral
from histoloom.training.loop import StepContext

LEAST_CROP = 0.6


@dataclass(frozen=True)
class ViewStrength:
    """How far a view may differ: shares of a channel's deviation; ``crop`` is the least side left."""

    gain: float = 0.2
    offset: float = 0.3
    noise: float = 0.1
    crop: float = LEAST_CROP
    vector_noise: float = 0.3


def any_stain(z_NVChw: Tensor, *, context: StepContext) -> Tensor:
    """Each patch in one of its stains, (N, C, h, w); or in one of the versions of its vector, (N, D)."""
    N, V = z_NVChw.shape[:2]
    return z_NVChw[torch.arange(N, device=z_NVChw.device), context.randint(V, (N,))]


def view(z_NChw: Tensor, *, context: StepContext, strength: ViewStrength) -> Tensor:
    """One random view of each patch."""
    N, C = z_NChw.shape[:2]
    z_NChw = dihedral(z_NChw, context.randint(DIHEDRAL, (N,)))
    z_NChw = crop(z_NChw, place_N3=context.rand((N, 3)), least=strength.crop)
    gain_NC11 = (strength.gain * context.randn((N, C, 1, 1))).exp()
    offset_NC11 = strength.offset * context.randn((N, C, 1, 1))
    noise_NChw = strength.noise * context.randn(tuple(z_NChw.shape))
    return gain_NC11 * z_NChw + offset_NC11 + noise_NChw


def vector_view(x_ND: Tensor, *, context: StepContext, strength: ViewStrength) -> Tensor:
    """One random view of each vector, of any version of it: moved by noise, in units of the root mean variance."""
    return x_ND + strength.vector_noise * context.randn(tuple(x_ND.shape))


def crop(z_NChw: Tensor, *, place_N3: Tensor, least: float) -> Tensor:
    """A random square of side ``least`` to 1 of each map, mirrored back to full size; ``place``: side, x, y in 0..1.

    Positions are never interpolated: latents between two positions mean nothing to the decoder.
    """
    N, C, h, w = z_NChw.shape
    side_N1 = ((least + (1 - least) * place_N3[:, :1]) * h).ceil()
    rows_Nh = _window(h, side_N1=side_N1, start_N1=place_N3[:, 1:2])
    columns_Nw = _window(w, side_N1=side_N1, start_N1=place_N3[:, 2:3])
    cropped = z_NChw.gather(2, rows_Nh[:, None, :, None].expand(N, C, h, w))
    return cropped.gather(3, columns_Nw[:, None, None, :].expand(N, C, h, w))


def _window(length: int, *, side_N1: Tensor, start_N1: Tensor) -> Tensor:
    """Positions start, start + 1, ... of a window of ``side``, running back and forth in it, (N, length) int64."""
    start_N1 = (start_N1 * (length - side_N1 + 1)).floor().clamp_max(length - 1)
    steps = torch.arange(length, device=side_N1.device)
    period_N1 = (2 * (side_N1 - 1)).clamp_min(1)
    phase_NL = steps % period_N1
    return (start_N1 + torch.minimum(phase_NL, period_N1 - phase_NL)).long().clamp(0, length - 1)
