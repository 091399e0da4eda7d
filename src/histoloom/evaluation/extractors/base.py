"""What turns images into the features that sets are compared by.

Legend of shapes: N images, H x W px, C channels, D features. Images are RGB uint8 0..255.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

BLOCK = 8
"""images that a network sees at once, always: sums differ in the last bit between batch sizes"""


class Extractor(ABC):
    """Features of images. They depend on the image alone: not on its place, its neighbours or the batch."""

    @property
    @abstractmethod
    def name(self) -> str:
        """As it stands beside every number."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """Of all that the features depend on besides the image: weights, version, settings."""

    @property
    @abstractmethod
    def least(self) -> int:
        """The least side of an image, px."""

    @abstractmethod
    def block(self, images_BHW3: np.ndarray) -> np.ndarray:
        """Features of BLOCK images, float32 (BLOCK, D)."""

    def features(self, images_NHW3: np.ndarray) -> np.ndarray:
        """Features of any number of images, uint8 (N, H, W, 3); float32 (N, D)."""
        parts = []
        for start in range(0, len(images_NHW3), BLOCK):
            part = images_NHW3[start : start + BLOCK]
            filling = np.repeat(part[-1:], BLOCK - len(part), axis=0)
            parts.append(self.block(np.concatenate([part, filling]))[: len(part)])
        return np.concatenate(parts)


@dataclass(frozen=True)
class Sources:
    """What an extractor may be made of: the ``device``, and the ``autoencoder`` stage of a run, where there is one."""

    device: torch.device
    autoencoder: Path | None = None
    download: bool = False


Maker = Callable[[str, Sources], Extractor]
"""Makes an extractor from what follows the kind in its name (``hf:NAME``); ``UserError`` where it cannot be had."""
