"""Where a drawing begins other than at pure noise: at data that are noised in part (Meng et al. 2022, SDEdit).

Shapes: N images, C x H x W normalised latents. The strength is the share of the process's steps that is undone: at 1
nothing of the data is left, towards 0 nothing is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from histoloom.config import DiffusionConfig, SamplerConfig
from histoloom.diffusion.model.noise_schedule import alphas_cumprod
from histoloom.diffusion.samplers.levels import Level, levels_of
from histoloom.diffusion.samplers.registry import SAMPLERS

PARALLEL = 1e-4
"""radians; vectors nearer than this are mixed straight"""


@dataclass(frozen=True, eq=False)
class PartialNoise:
    """Data that are noised to the step of ``strength``, in (0, 1]: ``from_NCHW``, or on the way to ``to_NCHW``.

    ``fraction_N``: the share of that way, 0..1. All on the CPU, so that every device begins at the same numbers.
    """

    strength: float
    from_NCHW: Tensor
    to_NCHW: Tensor
    fraction_N: Sequence[float]

    def noised(self, noise_NCHW: Tensor, *, level: Level) -> Tensor:
        """Both ends at ``level``, with the same unit noise, and between them along the arc (Shoemake 1985)."""
        if self.strength == 1:
            return noise_NCHW
        noise_NCHW = noise_NCHW.cpu()
        ends = [level.signal * z_NCHW + level.noise * noise_NCHW for z_NCHW in (self.from_NCHW, self.to_NCHW)]
        return torch.stack([arc(a, b, fraction=f) for a, b, f in zip(*ends, self.fraction_N, strict=True)])


def arc(a: Tensor, b: Tensor, *, fraction: float) -> Tensor:
    """The point at ``fraction``, 0..1, of the arc from ``a`` to ``b`` of any one shape (spherical interpolation)."""
    flat_a, flat_b = a.flatten().double(), b.flatten().double()
    cosine = torch.dot(flat_a, flat_b) / (flat_a.norm() * flat_b.norm()).clamp_min(1e-12)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if angle < PARALLEL:
        return a + fraction * (b - a)
    weights = (torch.sin((1 - fraction) * angle) / torch.sin(angle), torch.sin(fraction * angle) / torch.sin(angle))
    return (weights[0] * flat_a + weights[1] * flat_b).to(a.dtype).reshape(a.shape)


def levels_from(strength: float, *, sampler: SamplerConfig, config: DiffusionConfig) -> tuple[Level, ...]:
    """The noise levels from the step of ``strength`` on: as many for each step of the process as in a whole drawing.

    A network that was taught certain steps is asked at the first one here and at those of them that come after it.
    """
    bar_T = alphas_cumprod(config)
    kind = SAMPLERS[sampler.method]
    count = kind.levels_for(sampler.steps)
    if strength == 1:
        return levels_of(bar_T, count=count, spacing=sampler.spacing)
    left = max(1, round(len(bar_T) * strength))
    if kind.taught_steps:
        first = levels_of(bar_T[:left], count=1)[0]
        later = levels_of(bar_T, count=count, spacing=sampler.spacing)
        return (first, *(level for level in later if level.step < first.step))
    return levels_of(bar_T[:left], count=min(left, max(1, round(count * strength))), spacing=sampler.spacing)
