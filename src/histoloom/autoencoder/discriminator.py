"""The patch discriminator (Isola et al. 2017) and its hinge losses (Lim and Ye 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom.training import distributed

MAX_MULTIPLIER = 8
NORM_GROUPS = 16


class Discriminator(nn.Module):
    """Scores overlapping regions of images, (N, 3, H, W) in -1..1, to (N, 1, h, w); larger is more real.

    Group instead of batch normalisation, so that a score does not depend on the rest of the batch.
    """

    def __init__(self, channels: int, *, layers: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for layer in range(1, layers + 1):
            wider = channels * min(2**layer, MAX_MULTIPLIER)
            stride = 2 if layer < layers else 1
            blocks += [
                nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(min(NORM_GROUPS, wider), wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        self.layers = nn.Sequential(*blocks, nn.Conv2d(width, 1, 4, padding=1))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.layers(x_NCHW)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator on its scores of real and of fake images."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """The generator wants high scores."""
    return -fake.mean()


@torch.no_grad()
def told_apart(discriminator: Discriminator, real_NCHW: Tensor, fake_NCHW: Tensor) -> Tensor:
    """Whether each image, in -1..1, scores higher than its reconstruction, bool (N,).

    Right in about all pairs: the discriminator leads. In half of them or fewer: it has lost, and sharpens nothing.
    """
    real_N, fake_N = (discriminator(x_NCHW).float().mean(dim=(1, 2, 3)) for x_NCHW in (real_NCHW, fake_NCHW))
    return real_N > fake_N


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, *, last_layer: Tensor, bound: float) -> Tensor:
    """The ratio of the two losses' gradients at the last layer (Esser et al. 2021, equation 7), at most ``bound``.

    With several processes, of the gradients of the whole batch's losses.
    """
    return weight_of_gradients(last_layer_gradients(reconstruction, adversarial, last_layer=last_layer), bound=bound)


def last_layer_gradients(reconstruction: Tensor, adversarial: Tensor, *, last_layer: Tensor) -> Tensor:
    """The gradients of both losses at the last layer, one above the other, (2, ...)."""
    (towards_image,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (towards_real,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return torch.stack([towards_image, towards_real])


def weight_of_gradients(gradients_2: Tensor, *, bound: float) -> Tensor:
    """The adaptive weight of the mean over processes of ``last_layer_gradients``."""
    towards_image, towards_real = distributed.averaged(gradients_2)
    return (towards_image.norm() / (towards_real.norm() + 1e-4)).clamp(0, bound).detach()
