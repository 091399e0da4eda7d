"""The networks of Rumman et al. 2025 (Bioengineering 12(7), 764), as their public code builds them.

The blocks differ from diffusers' in their details: every residual layer has a 1x1 convolution on its shortcut, maps are
halved by 4x4 convolutions and doubled by transposed ones, and attention follows every layer of the U-Net. They are
written here once, so that the other networks stay simple. ``docs/explanation/reproducing.md`` lists the facts.

Shapes: N images or latents, C channels, H x W positions, E numbers of the embedding of step and cluster, K clusters.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from histoloom.config import AutoencoderConfig
from histoloom.training import distributed
from histoloom.training.devices import without_autocast

HEADS = 16
"""heads of every self-attention"""
SLOPE_DISCRIMINATOR, SLOPE_CLUSTERER = 0.2, 0.1
"""slopes of LeakyReLU below 0"""


class ResidualLayer(nn.Module):
    """Two normalised 3x3 convolutions and a 1x1 convolution of the input; an embedding is added between them.

    (N, in, H, W) to (N, out, H, W). ``embedding``: the length E of the embedding; 0: none.
    """

    def __init__(self, in_channels: int, out_channels: int, *, groups: int, embedding: int = 0) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(groups, in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.embed = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out_channels)) if embedding else None
        self.second = nn.Sequential(
            nn.GroupNorm(groups, out_channels), nn.SiLU(), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x_NCHW: Tensor, embedding_NE: Tensor | None = None) -> Tensor:
        y_NCHW = self.first(x_NCHW)
        if self.embed is not None:
            y_NCHW = y_NCHW + self.embed(embedding_NE)[:, :, None, None]
        y_NCHW = self.second(y_NCHW)
        return y_NCHW + self.shortcut(x_NCHW)


class SelfAttention(nn.Module):
    """Normalised self-attention over the positions of a map, added to it; (N, C, H, W) to the same."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.attention = nn.MultiheadAttention(channels, HEADS, batch_first=True)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        tokens_NPC = self.norm(x_NCHW).flatten(2).transpose(1, 2)
        attended_NPC, _ = self.attention(tokens_NPC, tokens_NPC, tokens_NPC, need_weights=False)
        return x_NCHW + attended_NPC.transpose(1, 2).reshape(x_NCHW.shape)


class MidBlock(nn.Module):
    """A residual layer, then ``attentions`` times self-attention and a residual layer."""

    def __init__(
        self, in_channels: int, out_channels: int, *, attentions: int, groups: int, embedding: int = 0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ResidualLayer(before, out_channels, groups=groups, embedding=embedding)
            for before in (in_channels, *[out_channels] * attentions)
        )
        self.attentions = nn.ModuleList(SelfAttention(out_channels, groups=groups) for _ in range(attentions))

    def forward(self, x_NCHW: Tensor, embedding_NE: Tensor | None = None) -> Tensor:
        first, *others = self.layers
        x_NCHW = first(x_NCHW, embedding_NE)
        for attention, layer in zip(self.attentions, others, strict=True):
            x_NCHW = layer(attention(x_NCHW), embedding_NE)
        return x_NCHW


def halving(channels: int) -> nn.Conv2d:
    """A 4x4 convolution that halves the height and the width of a map."""
    return nn.Conv2d(channels, channels, 4, stride=2, padding=1)


def doubling(channels: int) -> nn.ConvTranspose2d:
    """A 4x4 transposed convolution that doubles the height and the width of a map."""
    return nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)


class Encoder(nn.Module):
    """Images (N, 3, H, W) to latents before quantisation, (N, code_dim, H / f, W / f), f = 2 ** (levels - 1).

    A down block has ``config.blocks`` residual layers, and a convolution that halves.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, code_dim, blocks, groups = config.widths, config.code_dim, config.blocks, config.groups
        last = widths[-1]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1)]
        for before, after in itertools.pairwise(widths):
            layers += [ResidualLayer(width, after, groups=groups) for width in (before, *[after] * (blocks - 1))]
            layers.append(halving(after))
        layers.append(MidBlock(last, last, attentions=int(config.attention), groups=groups))
        layers += [nn.GroupNorm(groups, last), nn.SiLU(), nn.Conv2d(last, code_dim, 3, padding=1)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(code_dim, code_dim, 1))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.layers(x_NCHW)


class Decoder(nn.Module):
    """Latents (N, code_dim, h, w) to images (N, 3, f h, f w): the encoder's levels in reverse, not bounded."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, code_dim, blocks, groups = config.widths, config.code_dim, config.blocks, config.groups
        first, *_ = reversed(widths)
        layers: list[nn.Module] = [nn.Conv2d(code_dim, code_dim, 1), nn.Conv2d(code_dim, first, 3, padding=1)]
        layers.append(MidBlock(first, first, attentions=int(config.attention), groups=groups))
        for before, after in itertools.pairwise(reversed(widths)):
            layers.append(doubling(before))
            layers += [ResidualLayer(width, after, groups=groups) for width in (before, *[after] * (blocks - 1))]
        layers += [nn.GroupNorm(groups, widths[0]), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, q_NCHW: Tensor) -> Tensor:
        return self.conv_out(self.layers(q_NCHW))


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose statistics are those of the whole batch, also where processes share it."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not self.training or distributed.size() == 1:
            return super().forward(x_NCHW)
        with without_autocast(x_NCHW.device):
            x_NCHW = x_NCHW.float()
            moments_2C = torch.stack([x_NCHW.mean(dim=(0, 2, 3)), x_NCHW.pow(2).mean(dim=(0, 2, 3))])
            mean_C, square_C = distributed.mean_over_processes(moments_2C)
            variance_C = square_C - mean_C.pow(2)
            count = x_NCHW.numel() // x_NCHW.shape[1] * distributed.size()
            assert self.running_mean is not None, "made with running statistics"
            assert self.running_var is not None, "made with running statistics"
            assert self.num_batches_tracked is not None, "made with running statistics"
            assert self.momentum is not None, "made with a momentum"
            with torch.no_grad():
                self.running_mean.lerp_(mean_C, self.momentum)
                self.running_var.lerp_(variance_C * count / (count - 1), self.momentum)
                self.num_batches_tracked.add_(1)
            scale_C = self.weight / (variance_C + self.eps).sqrt()
            shift_C = self.bias - mean_C * scale_C
            return x_NCHW * scale_C[:, None, None] + shift_C[:, None, None]


class Discriminator(nn.Module):
    """Images (N, 3, H, W) to scores (N, 1, h, w) of overlapping regions; larger is more real.

    ``widths``: channels of the convolutions that halve the image.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        first, *others = widths
        layers: list[nn.Module] = [nn.Conv2d(3, first, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE_DISCRIMINATOR)]
        for before, after in itertools.pairwise([first, *others]):
            layers += [
                nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False),
                BatchNorm(after),
                nn.LeakyReLU(SLOPE_DISCRIMINATOR),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1, bias=False))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.layers(x_NCHW)


class Clusterer(nn.Module):
    """Latents (N, C, side, side) to logits of ``k`` clusters, (N, k).

    Three convolutions halve the map; the last one covers what is left of it. ``side``: a multiple of 8, 32 in the
    paper. The last activation is part of the logits.
    """

    def __init__(self, in_channels: int, *, channels: int, k: int, side: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, channels, 4, stride=2, padding=1),
            BatchNorm(channels),
            nn.LeakyReLU(SLOPE_CLUSTERER),
            nn.Conv2d(channels, channels, 4, stride=2, padding=1),
            BatchNorm(channels),
            nn.LeakyReLU(SLOPE_CLUSTERER),
            nn.Conv2d(channels, channels, 4, stride=2, padding=1),
            nn.LeakyReLU(SLOPE_CLUSTERER),
            nn.Conv2d(channels, k, side // 8),
            nn.LeakyReLU(SLOPE_CLUSTERER),
        )

    def forward(self, z_NCHW: Tensor) -> Tensor:
        return self.layers(z_NCHW).flatten(1)


@dataclass(frozen=True)
class UNetOutput:
    """``sample``: the prediction, (N, C, H, W). The name is that of diffusers' models."""

    sample: Tensor


class UNet(nn.Module):
    """Noisy latents (N, C, H, W), steps and conditions to the prediction, (N, C, H, W).

    ``widths``: of the first convolution, then of each down block. All down blocks but the last halve the map. Every
    residual layer is followed by self-attention. Skips lead from before each down block to its up block.
    """

    def __init__(self, channels: int, *, widths: Sequence[int], conditions: int, blocks: int, groups: int) -> None:
        super().__init__()
        self.config = {
            "channels": channels,
            "widths": list(widths),
            "conditions": conditions,
            "blocks": blocks,
            "groups": groups,
        }
        first, last = widths[0], widths[-1]
        self.embedding = 2 * first
        options = {"groups": groups, "embedding": self.embedding}
        self.class_embedding = nn.Embedding(conditions, self.embedding)
        self.time = nn.Sequential(
            nn.Linear(self.embedding, self.embedding), nn.SiLU(), nn.Linear(self.embedding, self.embedding)
        )
        self.conv_in = nn.Conv2d(channels, first, 3, padding=1)

        pairs = list(itertools.pairwise(widths))
        halves = [True] * (len(pairs) - 1) + [False]
        self.downs = nn.ModuleList(AttendedLayers(*pair, layers=blocks, **options) for pair in pairs)
        self.halvings = nn.ModuleList(
            halving(after) if half else nn.Identity() for (_, after), half in zip(pairs, halves, strict=True)
        )
        self.mid = MidBlock(last, last, attentions=2, **options)

        # An up block gets the map from below and the skip, both as wide as its down block's input.
        self.doublings = nn.ModuleList(
            doubling(before) if half else nn.Identity()
            for (before, _), half in zip(reversed(pairs), reversed(halves), strict=True)
        )
        outputs = [*reversed(widths[:-2]), first]
        self.ups = nn.ModuleList(
            AttendedLayers(2 * before, after, layers=blocks, **options)
            for (before, _), after in zip(reversed(pairs), outputs, strict=True)
        )
        self.conv_out = nn.Sequential(nn.GroupNorm(groups, first), nn.SiLU(), nn.Conv2d(first, channels, 3, padding=1))

    def forward(self, x_NCHW: Tensor, steps_N: Tensor, class_labels: Tensor) -> UNetOutput:
        """``steps_N``: steps of the process, (N,) or a single number; ``class_labels``: conditions, int64 (N,)."""
        steps_N = steps_N.to(x_NCHW.device).expand(len(x_NCHW))
        embedding_NE = self.time(sinusoids(steps_N, length=self.embedding)) + self.class_embedding(class_labels)

        x_NCHW, skips = self.conv_in(x_NCHW), []
        for down, half in zip(self.downs, self.halvings, strict=True):
            skips.append(x_NCHW)
            x_NCHW = half(down(x_NCHW, embedding_NE))
        x_NCHW = self.mid(x_NCHW, embedding_NE)
        for up, double in zip(self.ups, self.doublings, strict=True):
            x_NCHW = up(torch.cat([double(x_NCHW), skips.pop()], dim=1), embedding_NE)
        return UNetOutput(self.conv_out(x_NCHW))


class AttendedLayers(nn.Module):
    """``layers`` residual layers, each followed by self-attention."""

    def __init__(self, in_channels: int, out_channels: int, *, layers: int, groups: int, embedding: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ResidualLayer(before, out_channels, groups=groups, embedding=embedding)
            for before in (in_channels, *[out_channels] * (layers - 1))
        )
        self.attentions = nn.ModuleList(SelfAttention(out_channels, groups=groups) for _ in range(layers))

    def forward(self, x_NCHW: Tensor, embedding_NE: Tensor) -> Tensor:
        for layer, attention in zip(self.layers, self.attentions, strict=True):
            x_NCHW = attention(layer(x_NCHW, embedding_NE))
        return x_NCHW


def sinusoids(steps_N: Tensor, *, length: int) -> Tensor:
    """Embedding of steps, float32 (N, length): sines first, then cosines, of ``length / 2`` wavelengths.

    The wavelengths rise geometrically up to 2 pi 10,000 (Vaswani et al. 2017, section 3.5).
    """
    half = length // 2
    factor_H = 10_000 ** (torch.arange(half, dtype=torch.float32, device=steps_N.device) / half)
    angle_NH = steps_N[:, None].float() / factor_H
    return torch.cat([angle_NH.sin(), angle_NH.cos()], dim=1)
