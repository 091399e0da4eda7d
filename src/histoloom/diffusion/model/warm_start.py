"""Which condition of a given generator a new cluster begins as: one under which its patches are denoised well.

A conditional diffusion model is a classifier (Li et al. 2023, "Your diffusion model is secretly a zero-shot
classifier"): the condition that fits a picture is the one with the least error of denoising it. Here a whole cluster
is asked about, by some of its patches, with the same noise under every condition.

Shapes: M patches, C x h x w normalised latents, G conditions of the given generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from histoloom.config import DiffusionConfig
from histoloom.diffusion.model.noise_schedule import add_noise, alphas_cumprod, target
from histoloom.progress import meter

CHUNK = 32


@torch.no_grad()
def denoising_errors(
    unet: nn.Module,
    z_MChw: Tensor,
    *,
    config: DiffusionConfig,
    conditions: Sequence[int],
    generator: torch.Generator,
    device: torch.device,
) -> np.ndarray:
    """Mean squared error of what ``unet`` says of each patch under each of ``conditions``, float64 (M, G).

    Each patch has one step, evenly spread over the process by place, and one draw of noise. ``unet`` is on ``device``
    and in evaluation mode.
    """
    M, T = len(z_MChw), config.steps
    noise_MChw = torch.randn(z_MChw.shape, generator=generator)
    steps_M = ((torch.arange(M) + 0.5) * T / M).long()
    alpha_bar_T = alphas_cumprod(config).float()
    errors_MG = np.empty((M, len(conditions)))
    with meter("comparing clusters with the given generator's", total=M) as counter:
        for start in range(0, M, CHUNK):
            part = slice(start, min(M, start + CHUNK))
            z, noise, steps = (x[part].to(device) for x in (z_MChw, noise_MChw, steps_M))
            alpha_bar = alpha_bar_T[steps_M[part]].to(device)
            noisy = add_noise(z, noise, alpha_bar_N=alpha_bar)
            wanted = target(z, noise, alpha_bar_N=alpha_bar, prediction=config.prediction)
            for place, condition in enumerate(conditions):
                said = unet(noisy, steps, class_labels=torch.full_like(steps, condition)).sample.float()
                errors_MG[part, place] = (said - wanted).pow(2).mean(dim=(1, 2, 3)).double().cpu()
            counter.advance(len(z))
    return errors_MG


def closest(errors_MG: np.ndarray, *, labels_M: np.ndarray, k: int) -> np.ndarray:
    """For each of ``k`` clusters the place 0..G-1 of the condition that fits its patches, int64 (k,).

    All different, as far as there are conditions, with the least sum of mean errors (an assignment): one condition may
    fit all that a generator does not know, and clusters that began alike would be told apart late. ``labels_M``: the
    cluster of each patch. A cluster without patches takes what is left.
    """
    G = errors_MG.shape[1]
    members_kM = labels_M == np.arange(k)[:, None]
    members_kM |= ~members_kM.any(axis=1, keepdims=True)
    mean_kG = members_kM @ errors_MG / members_kM.sum(axis=1, keepdims=True)
    _, places_k = linear_sum_assignment(np.tile(mean_kG, -(-k // G)))
    return places_k % G
