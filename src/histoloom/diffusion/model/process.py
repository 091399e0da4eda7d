"""The diffusion process: its noise schedule, what the network predicts, and the training loss.

Ho et al. 2020; Salimans and Ho 2022 for the prediction of v. Shapes: N or B images, C x H x W latents, T steps of the
process, S values of k in the sweep. Latents are normalised (mean 0, standard deviation 1 in each component).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom.config import DiffusionConfig
from histoloom.diffusion.model.condition_maps import drawn_conditions
from histoloom.diffusion.model.conditions import Conditions
from histoloom.training.loop import StepContext

Prediction = Literal["epsilon", "v", "data"]


def alphas_cumprod(config: DiffusionConfig) -> Tensor:
    """Alpha bar: the share of the signal's variance that is left after each step, (T,) float64, falling."""
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
    bar_T = torch.cumprod(1 - betas, dim=0)

    # A shifted schedule has sigma, noise over signal, ``shift`` times as large at each step (Hoogeboom et al. 2023).
    return bar_T if config.shift == 1 else bar_T / (bar_T + config.shift**2 * (1 - bar_T))


def add_noise(z_NCHW: Tensor, noise_NCHW: Tensor, *, alpha_bar_N: Tensor) -> Tensor:
    """x_t = sqrt(alpha bar) z + sqrt(1 - alpha bar) noise (Ho et al. 2020, equation 4)."""
    a_N111 = alpha_bar_N[:, None, None, None]
    return a_N111.sqrt() * z_NCHW + (1 - a_N111).sqrt() * noise_NCHW


def training_target(z_NCHW: Tensor, noise_NCHW: Tensor, *, alpha_bar_N: Tensor, prediction: Prediction) -> Tensor:
    """What the network should predict: the noise, the data, or v.

    v = sqrt(alpha bar) noise - sqrt(1 - alpha bar) z (Salimans and Ho 2022, section 4).
    """
    if prediction == "epsilon":
        return noise_NCHW
    if prediction == "data":
        return z_NCHW
    a_N111 = alpha_bar_N[:, None, None, None]
    return a_N111.sqrt() * noise_NCHW - (1 - a_N111).sqrt() * z_NCHW


def predicted_data(
    output_NCHW: Tensor, *, x_NCHW: Tensor, signal: float | Tensor, noise: float | Tensor, prediction: Prediction
) -> Tensor:
    """The data that a network's output stands for at x = signal * data + noise * unit noise.

    It is ``training_target`` solved for the data.
    """
    if prediction == "data":
        return output_NCHW
    if prediction == "v":
        return signal * x_NCHW - noise * output_NCHW
    return (x_NCHW - noise * output_NCHW) / signal


class DiffusionLoss:
    """The simple loss of Ho et al. 2020 (equation 14), conditioned on the cluster.

    Batches are normalised latents (B, C, H, W), and condition numbers at every k of the sweep (B, S); with
    ``condition_maps`` then those of G x G places of each patch (B, S, G, G); with ``alignment``, for which the U-Net
    also gives projected features, last what these are drawn towards (B, D, h, w).
    """

    def __init__(self, config: DiffusionConfig, *, unet: nn.Module, conditions: Conditions) -> None:
        self.config = config
        self.unet = unet
        self.conditions = conditions
        self.alpha_bar_T = alphas_cumprod(config).float()

    def __call__(self, batch: tuple[Tensor, ...], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the prediction at a random step, for a random k of the sweep.

        With ``alignment`` less the weighted cosine similarity of projected features and their targets.
        """
        z_BCHW, numbers_BS, *others = batch
        B, _, *size = z_BCHW.shape

        # A step of the process and unit noise for each image.
        steps_B = context.randint(self.config.steps, (B,))
        noise_BCHW = context.randn(tuple(z_BCHW.shape))
        self.alpha_bar_T = self.alpha_bar_T.to(z_BCHW.device)  # a copy at the first step alone
        alpha_bar_B = self.alpha_bar_T[steps_B]

        # The cluster at a random k; sometimes the null, for classifier-free guidance (Ho and Salimans 2022).
        maps = others[:1] if self.config.condition_maps else ()
        conditions = drawn_conditions(numbers_BS, maps, context, size=(size[0], size[1]))
        dropped_B = context.rand((B,)) < self.config.condition_dropout
        numbers = conditions["class_labels"]
        conditions["class_labels"] = torch.where(
            dropped_B.view(B, *[1] * (numbers.ndim - 1)), self.conditions.null, numbers
        )

        noisy_BCHW = add_noise(z_BCHW, noise_BCHW, alpha_bar_N=alpha_bar_B)
        output = self.unet(noisy_BCHW, steps_B, **conditions)
        output_BCHW = output.sample.float()
        target_BCHW = training_target(z_BCHW, noise_BCHW, alpha_bar_N=alpha_bar_B, prediction=self.config.prediction)
        error_B = (output_BCHW - target_BCHW).pow(2).mean(dim=(1, 2, 3))
        loss, metrics = error_B.mean(), {"mse": error_B.mean()}
        if self.config.alignment:
            metrics["similarity"] = F.cosine_similarity(output.projected.float(), others[-1].float(), dim=1).mean()
            loss = loss - self.config.alignment * metrics["similarity"]
        return loss, metrics
