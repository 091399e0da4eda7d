"""What every kind of features gives: one tensor a patch, for the run's patches and for any other picture.

Legend of shapes: N patches, V views of each beside the patch itself, H x W px; ``*shape`` is what one patch becomes:
(D,), or (C, h, w) for latents.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from histoloom.run.stage import StageContext
from histoloom.training.devices import full_precision

BLOCK = 16
"""Patches that are computed at once: sums differ in the last bit between batch sizes."""


class Features(ABC):
    """One kind of features. They depend on the patch alone: not on its row, the patches beside it, or the batch."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of one patch, known before any is looked at."""

    @property
    @abstractmethod
    def views(self) -> int:
        """How many other views of each patch the training of clusters gets."""

    @abstractmethod
    def of_rows(self, rows_N: np.ndarray) -> Tensor:
        """The run's patches of these rows, float32 (N, *shape), on the CPU."""

    @abstractmethod
    def views_of_rows(self, rows_N: np.ndarray) -> Tensor:
        """The same patches seen otherwise: other stains, turned, cropped; float32 (N, V, *shape), on the CPU."""

    @abstractmethod
    def of_images(self, images_NHW3: np.ndarray) -> Tensor:
        """Any pictures, uint8 (N, H, W, 3) at the run's um/px; float32 (N, *shape), on the kind's device."""

    @abstractmethod
    def save(self, folder: Path) -> dict[str, Any]:
        """Write what other stages do not hold into ``folder``; returns what ``features.json`` has to say of it."""


@dataclass(frozen=True)
class Sources:
    """What a kind is loaded from: the published ``inputs`` by name, its own ``folder``, what it said of itself."""

    inputs: Mapping[str, Path]
    folder: Path
    said: Mapping[str, Any]
    device: torch.device


@dataclass(frozen=True)
class Kind:
    """How a kind is made in a run (trained, where it is), and loaded from what it saved, for ``of_images``."""

    make: Callable[[StageContext], Features]
    load: Callable[[Sources], Features]


@torch.no_grad()
def blockwise(x_N: Tensor, *, function: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """``function`` of blocks (BLOCK, ...) of ``x_N`` (N, ...) on ``device``, the last filled up; float32 (N, ...).

    Single precision without TensorFloat-32, whatever the training uses.
    """
    assert len(x_N), "at least one patch"
    parts = []
    for part_n in x_N.split(BLOCK):
        filled = torch.cat([part_n, part_n[-1:].expand(BLOCK - len(part_n), *part_n.shape[1:])])
        with full_precision():
            parts.append(function(filled.to(device)).float()[: len(part_n)])
    return torch.cat(parts)
