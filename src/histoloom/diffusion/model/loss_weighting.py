"""Which noise levels a training attends to: how often each step is drawn, and what its error weighs there.

Per step t of the process, sigma = noise over signal and lambda = -2 ln sigma, the logarithm of the signal-to-noise
ratio. Weights are of the squared error of what the network says; an error of the noise is lambda's exponential times
that of the data, and one of v their sum. Shapes: T steps, N images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from histoloom.config import DiffusionConfig
from histoloom.diffusion.model.noise_schedule import alphas_cumprod, loss_weight

LOG_NORMAL_CENTRE = -0.507
"""ln(sigma / deviation of the data) that EDM's training is centred on: -1.2 - ln 0.5 (Karras et al. 2022, table 1)"""
LOG_NORMAL_DEVIATION = 1.2
SIGMOID_CENTRE = 0.0


def step_shares(config: DiffusionConfig) -> Tensor | None:
    """How often each step is drawn, (T,) float64 that sums to 1; None: all alike.

    ``log-normal``: ln sigma is normal (Karras et al. 2022, table 1); a step stands for the levels nearest to it. With
    a plain error of v this is their weighting on data of deviation 1. Centre 0 is the logit-normal of Esser et al. 2024
    for flow matching, but for its deviation of 1.
    """
    if config.weighting != "log-normal":
        return None
    at = LOG_NORMAL_CENTRE if config.weighting_centre is None else config.weighting_centre
    standing_T = (log_sigma(config) - at) / LOG_NORMAL_DEVIATION
    below = torch.special.ndtr((standing_T[1:] + standing_T[:-1]) / 2)
    ends = torch.tensor([0.0, 1.0], dtype=below.dtype)
    return torch.cat([ends[:1], below, ends[1:]]).diff()


def step_weights(config: DiffusionConfig) -> Tensor:
    """What the squared error of what the network says weighs at each step, (T,) float32.

    ``sigmoid``: a weight of the noise's error per lambda that rises with the noise, from 0 to 1, and is 1/2 at the
    centre (Kingma and Gao 2023); its mean over the steps is made 1. ``log-normal`` weighs as a plain error of v.
    """
    bar_T = alphas_cumprod(config)
    snr_T = bar_T / (1 - bar_T)
    if config.weighting == "sigmoid":
        at = SIGMOID_CENTRE if config.weighting_centre is None else config.weighting_centre
        per_lambda_T = torch.sigmoid(2 * (log_sigma(config) - at))
        of_noise_T = 2 * torch.gradient(log_sigma(config))[0] * per_lambda_T
        weight_T = of_noise_T * {"epsilon": torch.ones_like(bar_T), "v": bar_T, "data": snr_T}[config.prediction]
        return (weight_T / weight_T.mean()).float()
    if config.weighting == "log-normal" and config.prediction == "data":
        return (1 + snr_T).float()
    return loss_weight(bar_T.float(), prediction=config.prediction, min_snr=config.min_snr)


def log_sigma(config: DiffusionConfig) -> Tensor:
    """ln(noise / signal) at each step, (T,) float64, rising."""
    bar_T = alphas_cumprod(config)
    return ((1 - bar_T).log() - bar_T.log()) / 2


def steps_at(uniform_N: Tensor, *, shares_T: Tensor) -> Tensor:
    """The steps (int64, N) at which the shares so far exceed numbers of 0..1."""
    cumulated_T = shares_T.cumsum(0).to(uniform_N)
    return torch.searchsorted(cumulated_T, uniform_N, right=True).clamp(max=len(shares_T) - 1)
