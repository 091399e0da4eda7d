"""What turns images into the features that sets are compared by.

Legend of shapes: N images, H x W px, C channels, D features. Images are RGB uint8 0..255.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from histoloom.training.devices import full_precision

BLOCK = 8
"""images that a network sees at once, always: sums differ in the last bit between batch sizes"""

MOST_THREADS = 16
"""blocks at once, which bounds memory"""


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

        def part(start: int) -> np.ndarray:
            some = images_NHW3[start : start + BLOCK]
            filling = np.repeat(some[-1:], BLOCK - len(some), axis=0)
            return self.block(np.concatenate([some, filling]))[: len(some)]

        return np.concatenate(_mapped(part, range(0, len(images_NHW3), BLOCK)))


def _mapped(part: Callable[[int], np.ndarray], starts: Sequence[int]) -> list[np.ndarray]:
    """Every part, several at once, each on one thread: sums differ in the last bit between numbers of threads."""
    threads = torch.get_num_threads()
    with full_precision():  # a process-wide setting, which parts that run at once would take back from one another
        if threads == 1:
            return [part(start) for start in starts]
        try:
            with ThreadPoolExecutor(
                min(threads, MOST_THREADS), initializer=torch.set_num_threads, initargs=(1,)
            ) as pool:
                return list(pool.map(part, starts))
        finally:
            torch.set_num_threads(threads)


@dataclass(frozen=True)
class Sources:
    """What an extractor may be made of: the ``device``, and the ``autoencoder`` stage of a run, where there is one."""

    device: torch.device
    autoencoder: Path | None = None
    download: bool = False


Maker = Callable[[str, Sources], Extractor]
"""Makes an extractor from what follows the kind in its name (``hf:NAME``); ``UserError`` where it cannot be had."""
