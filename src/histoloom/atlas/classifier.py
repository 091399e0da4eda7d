"""From patches to clusters: the run's encoder and clusterer as one function.

Shape suffixes: N patches, C channels, H and W height and width, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from histoloom.autoencoder.latents import LatentSet, normalise
from histoloom.autoencoder.vqgan import Autoencoder, to_float
from histoloom.clustering.clusterer import Clusterer
from histoloom.devices import full_precision

BLOCK = 16
"""Patches that the encoder sees at once: sums differ in the last bit between batch sizes."""


@dataclass(frozen=True)
class Classifier:
    """The networks of a run; ``mean_C`` and ``std_C`` are its latents' moments."""

    autoencoder: Autoencoder
    clusterer: Clusterer
    mean_C: Tensor
    std_C: Tensor
    device: torch.device

    @staticmethod
    def load(*, autoencoder: Path, latents: Path, clusters: Path, device: torch.device) -> Classifier:
        """Read the networks from the folders of the three stages."""
        moments = LatentSet.open(latents)
        return Classifier(
            autoencoder=Autoencoder.load(autoencoder).to(device),
            clusterer=Clusterer.load(clusters).to(device),
            mean_C=torch.from_numpy(moments.mean).to(device),
            std_C=torch.from_numpy(moments.std).to(device),
            device=device,
        )

    @torch.no_grad()
    def labels(self, patches: np.ndarray) -> dict[int, np.ndarray]:
        """The most probable cluster (N,) under each k of patches, uint8 (N, H, W, 3).

        A patch's cluster does not depend on the patches beside it: the encoder, too, sees batches of one size.
        """
        z_NCHW = torch.cat([self._encoded(patches[start : start + BLOCK]) for start in range(0, len(patches), BLOCK)])
        p_by_k = self.clusterer.probabilities(normalise(z_NCHW, mean=self.mean_C, std=self.std_C))
        return {k: p_NK.argmax(dim=1).cpu().numpy() for k, p_NK in p_by_k.items()}

    def _encoded(self, patches: np.ndarray) -> Tensor:
        """Latents of at most ``BLOCK`` patches, filled up to that many with the last one."""
        filled = np.concatenate([patches, np.repeat(patches[-1:], BLOCK - len(patches), axis=0)])
        with full_precision():
            return self.autoencoder.encode(to_float(torch.from_numpy(filled).to(self.device))).float()[: len(patches)]
