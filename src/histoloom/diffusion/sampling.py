"""Drawing latents: diffusers' schedulers, classifier-free guidance, one random stream an image.

Shapes: N images, C x H x W normalised latents. ``clip_sample`` is off: latents are not bounded by 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn

from histoloom.config import DiffusionConfig, SamplerConfig
from histoloom.errors import UserError

PREDICTION = {"epsilon": "epsilon", "v": "v_prediction"}
SCHEDULE = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def make_scheduler(config: DiffusionConfig, sampler: SamplerConfig) -> Any:
    """The diffusers scheduler of ``sampler`` for the process of ``config``, its steps set."""
    if sampler.steps > config.steps:
        raise UserError(f"at most {config.steps} sampling steps in this generator, got {sampler.steps}")
    process = {
        "num_train_timesteps": config.steps,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": SCHEDULE[config.schedule],
        "prediction_type": PREDICTION[config.prediction],
    }
    if sampler.method == "ddpm":
        scheduler = DDPMScheduler(**process, clip_sample=False, timestep_spacing="trailing")
    else:
        scheduler = DPMSolverMultistepScheduler(**process, algorithm_type="dpmsolver++", timestep_spacing="trailing")
    scheduler.set_timesteps(sampler.steps)
    return scheduler


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
) -> Tensor:
    """Latents (N, C, h, w), image i of condition ``conditions[i]`` with the random numbers of ``generators[i]``."""
    assert len(conditions) == len(generators), "one stream an image"
    scheduler = make_scheduler(config, sampler)
    start = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    x_NCHW = start.to(device) * scheduler.init_noise_sigma
    conditions_N = torch.tensor(conditions, device=device)
    for step in scheduler.timesteps:
        said_NCHW = guided(unet, x_NCHW, step=step, conditions_N=conditions_N, null=null, guidance=sampler.guidance)
        x_NCHW = scheduler.step(said_NCHW, step, x_NCHW, generator=list(generators)).prev_sample
    return x_NCHW


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
