"""A small convolutional network from pixels to features: what classifiers of patches are built on.

Shapes: B patches of a batch, H x W px, D features.
"""

from __future__ import annotations

from torch import Tensor, nn

FOLD, GROUPS = 4, 8
"""Pixels folded into channels along each side first; groups of the normalisation."""


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
