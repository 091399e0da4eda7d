"""The forward process and its training targets (Ho et al. 2020; Salimans and Ho 2022). Pure functions.

Shapes: N images, C x H x W latents, T steps. Latents are normalised (mean 0, deviation 1 a channel).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from histoloom.config import DiffusionConfig

Prediction = Literal["epsilon", "v", "data"]


def alphas_cumprod(config: DiffusionConfig) -> Tensor:
    """The share of the signal's variance that is left after each step, (T,) float64, falling."""
    T = config.steps
    if config.schedule == "linear":
        betas = torch.linspace(config.beta_start, config.beta_end, T, dtype=torch.float64)
    elif config.schedule == "scaled_linear":
        betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, T, dtype=torch.float64) ** 2
    else:
        # Nichol and Dhariwal 2021, equation 17.
        t = torch.arange(T + 1, dtype=torch.float64) / T
        bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    bar_T = shifted(torch.cumprod(1 - betas, dim=0), shift=config.shift)
    return with_zero_terminal_snr(bar_T) if config.zero_terminal_snr else bar_T


def shifted(bar_T: Tensor, *, shift: float) -> Tensor:
    """``bar_T`` with sigma ``shift`` times as large at each step (Hoogeboom et al. 2023, shifted schedules)."""
    return bar_T if shift == 1 else bar_T / (bar_T + shift**2 * (1 - bar_T))


def with_zero_terminal_snr(bar_T: Tensor) -> Tensor:
    """``bar_T``, its root shifted and stretched so that the last step keeps nothing (Lin et al. 2024, algorithm 1)."""
    root_T = bar_T.sqrt()
    return ((root_T - root_T[-1]) * root_T[0] / (root_T[0] - root_T[-1])) ** 2


def add_noise(z_NCHW: Tensor, noise_NCHW: Tensor, *, alpha_bar_N: Tensor) -> Tensor:
    """x_t = sqrt(a) z + sqrt(1 - a) noise (Ho et al. 2020, equation 4)."""
    a_N111 = alpha_bar_N[:, None, None, None]
    return a_N111.sqrt() * z_NCHW + (1 - a_N111).sqrt() * noise_NCHW


def target(z_NCHW: Tensor, noise_NCHW: Tensor, *, alpha_bar_N: Tensor, prediction: Prediction) -> Tensor:
    """What the network should say: noise, data, or v = sqrt(a) noise - sqrt(1 - a) z (Salimans and Ho 2022)."""
    if prediction == "epsilon":
        return noise_NCHW
    if prediction == "data":
        return z_NCHW
    a_N111 = alpha_bar_N[:, None, None, None]
    return a_N111.sqrt() * noise_NCHW - (1 - a_N111).sqrt() * z_NCHW


def data_of(
    said_NCHW: Tensor, *, x_NCHW: Tensor, signal: float | Tensor, noise: float | Tensor, prediction: Prediction
) -> Tensor:
    """The data that a network's word means, at x = signal * data + noise * unit noise: ``target`` solved for them."""
    if prediction == "data":
        return said_NCHW
    if prediction == "v":
        return signal * x_NCHW - noise * said_NCHW
    return (x_NCHW - noise * said_NCHW) / signal


def loss_weight(alpha_bar_N: Tensor, *, prediction: Prediction, min_snr: float | None) -> Tensor:
    """Weight of each image's squared error, (N,): 1, or the min-SNR weight (Hang et al. 2023, section 3.4)."""
    if min_snr is None:
        return torch.ones_like(alpha_bar_N)
    snr_N = alpha_bar_N / (1 - alpha_bar_N)
    clipped_N = snr_N.clamp(max=min_snr)
    if prediction == "data":
        return clipped_N
    return clipped_N / snr_N if prediction == "epsilon" else clipped_N / (snr_N + 1)
