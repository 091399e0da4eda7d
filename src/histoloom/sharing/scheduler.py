"""The process as a ``diffusers`` scheduler: for export, so that others' code can draw with the network."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler

from histoloom.config import DiffusionConfig
from histoloom.diffusion.model.noise_schedule import alphas_cumprod

PREDICTION = {"epsilon": "epsilon", "v": "v_prediction", "data": "sample"}
SCHEDULE = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def make_scheduler(config: DiffusionConfig) -> DDPMScheduler:
    """The process of ``config``, with all of its steps.

    ``clip_sample`` is off: latents are not bounded by 1. Schedulers of diffusers' other samplers take it over:
    ``DPMSolverMultistepScheduler.from_config(scheduler.config)``.
    """
    return DDPMScheduler(
        num_train_timesteps=config.steps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule=SCHEDULE[config.schedule],
        trained_betas=None if config.shift == 1 else _betas(config),
        prediction_type=PREDICTION[config.prediction],
        rescale_betas_zero_snr=config.zero_terminal_snr,
        timestep_spacing="trailing",
        clip_sample=False,
    )


def _betas(config: DiffusionConfig) -> list[float]:
    """Of a process that none of diffusers' schedules is; its last step's noise is stretched to the end by diffusers."""
    bar_T = alphas_cumprod(config.model_copy(update={"zero_terminal_snr": False}))
    return [float(beta) for beta in 1 - bar_T / torch.cat([torch.ones(1, dtype=bar_T.dtype), bar_T[:-1]])]
