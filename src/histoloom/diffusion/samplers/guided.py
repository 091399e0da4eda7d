"""Drawing latents: a sampler, classifier-free guidance, one random stream an image.

Shapes: N images, C x H x W normalised latents, which are not clipped: they are not bounded by 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from histoloom.config import DiffusionConfig, SamplerConfig
from histoloom.diffusion.model.noise_schedule import data_of
from histoloom.diffusion.samplers.levels import Level
from histoloom.diffusion.samplers.partial_noise import PartialNoise, levels_from
from histoloom.diffusion.samplers.registry import SAMPLERS
from histoloom.errors import UserError

Callback = Callable[[int, int], None]
"""Told before each noise level how many are done, and of how many; what it raises ends the drawing."""


@torch.no_grad()
def draw_latents(
    unet: nn.Module,
    *,
    config: DiffusionConfig,
    sampler: SamplerConfig,
    shape: tuple[int, int, int],
    conditions: Sequence[int],
    null: int,
    generators: Sequence[torch.Generator],
    device: torch.device,
    beginning: PartialNoise | None = None,
    watch: Callback | None = None,
) -> Tensor:
    """Latents (N, C, h, w), image i of condition ``conditions[i]`` with the random numbers of ``generators[i]``.

    From pure noise, or from ``beginning``. ``UserError`` where ``sampler`` does not fit the process.
    """
    assert len(conditions) == len(generators), "one stream an image"
    levels = levels_visited(sampler, config=config)
    if beginning is not None:
        levels = levels_from(beginning.strength, sampler=sampler, config=config)
    conditions_N = torch.tensor(conditions, device=device)
    noise = partial(unit_noise, generators, shape=shape, device=device)

    def denoise(x_NCHW: Tensor, level: Level) -> Tensor:
        if watch is not None:
            watch(levels.index(level), len(levels) - 1)
        said_NCHW = guided(
            unet,
            x_NCHW,
            step=torch.tensor(level.step),
            conditions_N=conditions_N,
            null=null,
            guidance=guidance_at(level, sampler=sampler),
        )
        return data_of(said_NCHW, x_NCHW=x_NCHW, signal=level.signal, noise=level.noise, prediction=config.prediction)

    start_NCHW = noise()
    if beginning is not None:
        start_NCHW = beginning.noised(start_NCHW, level=levels[0]).to(device)
    return SAMPLERS[sampler.method].draw(denoise, start_NCHW, levels=levels, noise=noise)


def levels_visited(sampler: SamplerConfig, *, config: DiffusionConfig) -> tuple[Level, ...]:
    """The noise levels of a sampling; ``UserError`` where ``sampler`` does not fit the process of ``config``."""
    if sampler.steps > config.steps:
        raise UserError(f"at most {config.steps} sampling steps in this generator, got {sampler.steps}")
    count = SAMPLERS[sampler.method].levels_for(sampler.steps)
    if sampler.spacing != 1 and count == config.steps:
        raise UserError(f"spacing {sampler.spacing:g} has no effect where all {count} steps are made; set it to 1")
    levels = levels_from(1.0, sampler=sampler, config=config)
    noisy = levels[:-1]
    if sampler.guidance_interval and all(guidance_at(level, sampler=sampler) == 1.0 for level in noisy):
        low, high = sampler.guidance_interval
        raise UserError(
            f"no step of this sampler has its sigma within guidance_interval [{low:g}, {high:g}]; "
            f"they go from {noisy[0].sigma:.3g} to {noisy[-1].sigma:.3g}"
        )
    return levels


def unit_noise(generators: Sequence[torch.Generator], *, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """New noise (N, C, h, w), image i from ``generators[i]``; drawn on the CPU, the same for every device."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)


def guidance_at(level: Level, *, sampler: SamplerConfig) -> float:
    """The guidance strength at a noise level: 1, no guidance, outside the interval (Kynkaanniemi et al. 2024)."""
    low, high = sampler.guidance_interval or (-1.0, float("inf"))
    return sampler.guidance if low < level.sigma <= high else 1.0


def guided(
    unet: nn.Module, x_NCHW: Tensor, *, step: Tensor, conditions_N: Tensor, null: int, guidance: float
) -> Tensor:
    """The network's word under classifier-free guidance (Ho and Salimans 2022): null + g (conditional - null)."""
    null_N = torch.full_like(conditions_N, null)
    if guidance in (0.0, 1.0):
        return unet(x_NCHW, step, class_labels=conditions_N if guidance else null_N).sample.float()
    both = torch.cat([conditions_N, null_N])
    said = unet(torch.cat([x_NCHW, x_NCHW]), step, class_labels=both).sample.float()
    conditional_NCHW, plain_NCHW = said.chunk(2)
    return plain_NCHW + guidance * (conditional_NCHW - plain_NCHW)
