"""What the conditional latent diffusion model minimises."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from histoloom.autoencoder.augment import DIHEDRAL, dihedral
from histoloom.config import DiffusionConfig
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.loss_weighting import step_shares, step_weights, steps_at
from histoloom.diffusion.model.noise_schedule import add_noise, alphas_cumprod, target
from histoloom.training.loop import StepContext


class DiffusionLoss:
    """Batches are pairs: normalised latents (B, C, h, w), and condition numbers at every k of the sweep (B, S)."""

    def __init__(self, config: DiffusionConfig, *, unet: nn.Module, conditions: Conditions) -> None:
        self.config = config
        self.unet = unet
        self.conditions = conditions
        self.alpha_bar_T = alphas_cumprod(config).float()
        self.weight_T = step_weights(config)
        self.shares_T = step_shares(config)

    def __call__(self, batch: tuple[Tensor, Tensor], context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted squared error of the prediction at a random step, for a random k of the sweep."""
        z_BCHW, numbers_BS = batch
        B = len(z_BCHW)
        if self.config.augment is True:
            z_BCHW = dihedral(z_BCHW, context.randint(DIHEDRAL, (B,)))
        steps_B = self._steps(B, context=context)
        noise_BCHW = context.randn(tuple(z_BCHW.shape))
        conditions_B = self._conditions(numbers_BS, context=context)
        alpha_bar_B = self.alpha_bar_T.to(z_BCHW.device)[steps_B]
        noisy_BCHW = add_noise(z_BCHW, noise_BCHW, alpha_bar_N=alpha_bar_B)
        said_BCHW = self.unet(noisy_BCHW, steps_B, class_labels=conditions_B).sample.float()
        kind = self.config.prediction
        wanted_BCHW = target(z_BCHW, noise_BCHW, alpha_bar_N=alpha_bar_B, prediction=kind)
        error_B = (said_BCHW - wanted_BCHW).pow(2).mean(dim=(1, 2, 3))
        weight_B = self.weight_T.to(z_BCHW.device)[steps_B]
        return (weight_B * error_B).mean(), {"mse": error_B.mean()}

    def _steps(self, B: int, *, context: StepContext) -> Tensor:
        if self.shares_T is None:
            return context.randint(self.config.steps, (B,))
        return steps_at(context.rand((B,)), shares_T=self.shares_T.to(context.device))

    def _conditions(self, numbers_BS: Tensor, *, context: StepContext) -> Tensor:
        B, S = numbers_BS.shape
        chosen_B = numbers_BS.gather(1, context.randint(S, (B, 1)))[:, 0]
        dropped_B = context.rand((B,)) < self.config.condition_dropout
        return torch.where(dropped_B, self.conditions.dropped(chosen_B), chosen_B)
