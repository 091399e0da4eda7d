"""Warm start: which condition of a pretrained generator each new cluster starts from.

A conditional diffusion model is a classifier (Li et al. 2023, "Your diffusion model is secretly a zero-shot
classifier"): the condition that fits a picture best is the one under which it is denoised with the least error. Here
some patches of each new cluster are denoised under every condition of the pretrained generator, with the same noise.

Shapes: M patches, C x h x w normalised latents, G conditions of the pretrained generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from histoloom.config import DiffusionConfig
from histoloom.diffusion.model.process import add_noise, alphas_cumprod, training_target
from histoloom.progress import meter

BATCH_SIZE = 32


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
    """Mean squared error of the prediction for each patch under each of ``conditions``, float64 (M, G).

    Each patch has one step, evenly spread over the process by its row, and one draw of noise. ``unet`` is on ``device``
    and in evaluation mode.
    """
    M, T = len(z_MChw), config.steps
    noise_MChw = torch.randn(z_MChw.shape, generator=generator)
    steps_M = ((torch.arange(M) + 0.5) * T / M).long()
    alpha_bar_M = alphas_cumprod(config).float()[steps_M]
    errors_MG = np.empty((M, len(conditions)))
    with meter("comparing clusters with those of the pretrained generator", total=M) as counter:
        for start in range(0, M, BATCH_SIZE):
            part = slice(start, min(M, start + BATCH_SIZE))
            z, noise, steps, alpha_bar = (x[part].to(device) for x in (z_MChw, noise_MChw, steps_M, alpha_bar_M))
            noisy = add_noise(z, noise, alpha_bar_N=alpha_bar)
            target = training_target(z, noise, alpha_bar_N=alpha_bar, prediction=config.prediction)
            for column, condition in enumerate(conditions):
                output = unet(noisy, steps, class_labels=torch.full_like(steps, condition)).sample.float()
                errors_MG[part, column] = (output - target).pow(2).mean(dim=(1, 2, 3)).double().cpu()
            counter.advance(len(z))
    return errors_MG


def closest_conditions(errors_MG: np.ndarray, *, labels_M: np.ndarray, k: int) -> np.ndarray:
    """For each of ``k`` clusters the condition 0..G-1 that fits its patches best, int64 (k,).

    ``labels_M``: the cluster of each patch. The conditions are all different, as far as there are enough, and have the
    least sum of mean errors (a linear assignment). Without this, one condition may fit all tissue that the generator
    does not know, and clusters that start from the same condition separate late. A cluster without patches gets a
    condition that is left over.
    """
    G = errors_MG.shape[1]
    members_kM = labels_M == np.arange(k)[:, None]
    # A cluster without patches: the mean over all patches.
    members_kM |= ~members_kM.any(axis=1, keepdims=True)
    mean_kG = members_kM @ errors_MG / members_kM.sum(axis=1, keepdims=True)
    from scipy.optimize import linear_sum_assignment  # heavy, and no other training needs it

    # More clusters than conditions: each condition may be used ceil(k / G) times.
    _, columns_k = linear_sum_assignment(np.tile(mean_kG, -(-k // G)))
    return columns_k % G
