"""A small encoder that is trained on patches without labels: VICReg (Bardes, Ponce and LeCun 2022).

Two views of a patch shall have the same embedding (invariance), every dimension of an embedding shall differ between
patches (variance), and no two dimensions shall be correlated (covariance). No negatives, no second network, and batches
of 64 are enough, which is what a run of some thousand patches on a CPU can give.

Shapes: B patches of a batch, H x W px, D features, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom.autoencoder.vqgan import to_float
from histoloom.clustering.features.images import random_view
from histoloom.config import SelfsupConfig
from histoloom.training.loop import StepContext

FOLD, GROUPS = 4, 8
"""Pixels folded into channels along each side first; groups of the normalisation."""

EXPANDED = 2
"""Width between features and embedding, in features. The embedding is as wide as the features: the covariances of a
wider one are mostly noise in batches of 64, and hold its spread down."""


class PatchEncoder(nn.Module):
    """Pixels to (B, D) features: three levels of convolutions, then the mean over positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = w = channels
        self.levels = nn.Sequential(
            nn.PixelUnshuffle(FOLD),
            *_layer(3 * FOLD**2, w, stride=1),
            *_layer(w, 2 * w, stride=2),
            *_layer(2 * w, 2 * w, stride=1),
            *_layer(2 * w, 4 * w, stride=2),
            *_layer(4 * w, 4 * w, stride=1),
        )
        self.features = 4 * w

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Features of images, float -1..1, with sides that are multiples of 4 px; (B, D)."""
        return self.levels(x_B3HW).mean(dim=(2, 3))


def _layer(before: int, after: int, *, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1)
    return [convolution, nn.GroupNorm(GROUPS, after), nn.SiLU()]


class Expander(nn.Module):
    """Features to the embedding in which views are compared, (B, E); not used after the training."""

    def __init__(self, features: int) -> None:
        super().__init__()
        wide = EXPANDED * features
        self.layers = nn.Sequential(
            nn.Linear(features, wide), nn.BatchNorm1d(wide), nn.ReLU(), nn.Linear(wide, features)
        )

    def forward(self, y_BD: Tensor) -> Tensor:
        return self.layers(y_BD)


class VicregLoss:
    """Batches are images, uint8 (B, H, W, 3)."""

    def __init__(self, config: SelfsupConfig, *, encoder: PatchEncoder, expander: Expander, stain: float) -> None:
        self.config, self.encoder, self.expander, self.stain = config, encoder, expander, stain

    def __call__(self, images_BHW3: Tensor, context: StepContext) -> tuple[Tensor, dict[str, Tensor]]:
        """The three weighted terms of equation 6, on two random views."""
        x_B3HW = to_float(images_BHW3)
        first, second = (random_view(x_B3HW, context=context, strength=self.stain) for _ in range(2))
        both = self.expander(self.encoder(torch.cat([first, second]))).float()
        a_BE, b_BE = both.chunk(2)
        terms = {
            "invariance": F.mse_loss(a_BE, b_BE),
            "variance": 0.5 * (variance_loss(a_BE) + variance_loss(b_BE)),
            "covariance": covariance_loss(a_BE) + covariance_loss(b_BE),
        }
        weights = {"invariance": self.config.invariance, "variance": self.config.variance, "covariance": 1.0}
        return torch.stack([weights[name] * terms[name] for name in terms]).sum(), terms


def variance_loss(z_BE: Tensor) -> Tensor:
    """Mean over the dimensions of how far the deviation over the batch is below 1 (equation 1)."""
    return F.relu(1 - (z_BE.var(dim=0) + 1e-4).sqrt()).mean()


def covariance_loss(z_BE: Tensor) -> Tensor:
    """Sum of the squared covariances of different dimensions, divided by their number (equation 4)."""
    centred_BE = z_BE - z_BE.mean(dim=0)
    with torch.autocast(z_BE.device.type, enabled=False):  # half precision would round the small ones away
        covariance_EE = centred_BE.T @ centred_BE / (len(z_BE) - 1)
    off_EE = covariance_EE - torch.diag(covariance_EE.diagonal())
    return off_EE.pow(2).sum() / z_BE.shape[1]
