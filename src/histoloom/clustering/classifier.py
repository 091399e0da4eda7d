"""From patches to clusters: the clusters' features and the clusterer as one function.

Shape suffixes: N patches, H and W height and width, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from histoloom.clustering.clusterer import Clusterer
from histoloom.clustering.features.bank import PredictedFeatures, load_features


@dataclass(frozen=True)
class Classifier:
    """The networks of a run."""

    features: PredictedFeatures
    clusterer: Clusterer

    @staticmethod
    def load(*, autoencoder: Path, latents: Path, clusters: Path, device: torch.device) -> Classifier:
        """Read the networks from the folders of the three stages.

        ``UserError`` where the clusters were made with an encoder that is not the run's own, and that is gone;
        ``ImagesUnsupported`` where they were made of features from files.
        """
        inputs = {"autoencoder": autoencoder, "latents": latents}
        return Classifier(
            features=load_features(clusters, inputs=inputs, device=device),
            clusterer=Clusterer.load(clusters).to(device),
        )

    @torch.no_grad()
    def labels(self, patches: np.ndarray, surroundings: np.ndarray | None = None) -> dict[int, np.ndarray]:
        """The most probable cluster (N,) under each k of patches, uint8 (N, H, W, 3).

        ``surroundings``: the fields about the patches, uint8 (N, S, S, 3), where the clusters were made with them and
        the slide is at hand. Without it the patches alone are looked at; what that costs is in ``patch_alone.json``.
        A patch's cluster does not depend on the other patches: networks that could see them get batches of one size.
        """
        p_by_k = self.clusterer.probabilities(self.features.compute_images(patches, surroundings))
        return {k: p_NK.argmax(dim=1).cpu().numpy() for k, p_NK in p_by_k.items()}
