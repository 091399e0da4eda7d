"""A small segmentation network for the benchmarks of painted fields: a U-Net on pixels, at half their resolution.

Shapes: B crops of S x S px, K classes, H and W of a whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom.autoencoder.augment import DIHEDRAL, dihedral
from histoloom.autoencoder.vqgan import to_float
from histoloom.seeding import numpy_generator

CHANNELS = (16, 32, 64, 96)
CROP, BATCH = 128, 8
TILE, MARGIN = 512, 64
"""an image is segmented in tiles, of which a margin is cut off"""
IGNORED = 255
"""a pixel without label"""


class Segmenter(nn.Module):
    """Pixels (B, 3, S, S) to logits (B, K, S, S)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS[0], 3, stride=2, padding=1)
        self.down = nn.ModuleList(
            _block(before, after) for before, after in zip((CHANNELS[0], *CHANNELS), CHANNELS, strict=False)
        )
        self.up = nn.ModuleList(
            _block(CHANNELS[level + 1] + CHANNELS[level], CHANNELS[level])
            for level in reversed(range(len(CHANNELS) - 1))
        )
        self.head = nn.Conv2d(CHANNELS[0], classes, 1)

    def forward(self, x_B3SS: Tensor) -> Tensor:
        """Logits (B, K, S, S)."""
        x, skips = self.stem(x_B3SS), []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), skips.pop()], dim=1))
        return F.interpolate(self.head(x), scale_factor=2.0, mode="bilinear")


def _block(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class LabelledField:
    """An image, uint8 (H, W, 3), with the class of each pixel, uint8 (H, W); ``IGNORED`` for none."""

    image_HW3: np.ndarray
    label_HW: np.ndarray


def train_segmenter(fields: Sequence[LabelledField], *, classes: int, steps: int, seed: int) -> Segmenter:
    """Train on random crops, turned and mirrored; a class counts by the root of its rarity."""
    rng = numpy_generator(seed, "segmenter")
    torch.manual_seed(seed)
    network = Segmenter(classes).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    counts_K = np.sum([np.bincount(field.label_HW.ravel(), minlength=256) for field in fields], axis=0)[:classes]
    weights_K = torch.from_numpy(np.where(counts_K > 0, np.maximum(counts_K, 1) ** -0.5, 0.0)).float()
    weights_K /= weights_K.mean()

    for _ in range(steps):
        images, labels = [], []
        for field in (fields[int(number)] for number in rng.integers(len(fields), size=BATCH)):
            y, x = (int(rng.integers(length - CROP + 1)) for length in field.label_HW.shape)
            images.append(field.image_HW3[y : y + CROP, x : x + CROP])
            labels.append(field.label_HW[y : y + CROP, x : x + CROP])
        turns_B = torch.from_numpy(rng.integers(DIHEDRAL, size=BATCH))
        x_B3SS = dihedral(to_float(torch.from_numpy(np.stack(images))), turns_B)
        label_B1SS = dihedral(torch.from_numpy(np.stack(labels)).long()[:, None], turns_B)
        loss = F.cross_entropy(network(x_B3SS), label_B1SS[:, 0], weight=weights_K, ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def segment(network: Segmenter, image_HW3: np.ndarray) -> np.ndarray:
    """The class of each pixel, uint8 (H, W)."""
    height, width = image_HW3.shape[:2]
    inner = TILE - 2 * MARGIN
    padded = np.pad(
        image_HW3, ((MARGIN, MARGIN + -height % inner), (MARGIN, MARGIN + -width % inner), (0, 0)), "reflect"
    )
    label_HW = np.zeros((height, width), np.uint8)
    for top in range(0, height, inner):
        for left in range(0, width, inner):
            tile = torch.from_numpy(np.ascontiguousarray(padded[top : top + TILE, left : left + TILE]))
            classes_SS = network(to_float(tile[None])).argmax(dim=1)[0, MARGIN:-MARGIN, MARGIN:-MARGIN].numpy()
            rows, columns = min(inner, height - top), min(inner, width - left)
            label_HW[top : top + rows, left : left + columns] = classes_SS[:rows, :columns]
    return label_HW
