"""Features of what lies around a patch: the same network as a patch's own, on a field several times as wide.

What tissue a patch belongs to shows in its surroundings as well: a gland, a vessel or the edge of a tumour is larger
than a patch. Shapes: N patches, S x S px of a field's image, D features.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from histoloom.clustering.features.base import EncoderRecord, Features, Sources
from histoloom.clustering.features.images import ImageFeatures
from histoloom.clustering.features.perceptual import PerceptualFeatures
from histoloom.clustering.features.pretrained import PretrainedFeatures
from histoloom.run.stage import StageContext
from histoloom.slides.patch_set import PatchSet


class Surroundings(Features):
    """``network``'s features of the fields about a run's patches; ``patches`` is None where they only predict."""

    def __init__(self, network: ImageFeatures, *, patches: PatchSet | None) -> None:
        self.network = network
        self.patches = patches

    @classmethod
    def make(cls, context: StageContext) -> Features:
        """By the pretrained encoder where the patches are described by one, else by the trunk of ``perceptual``."""
        kind = PretrainedFeatures if "encoder" in context.config.clusters.kinds else PerceptualFeatures
        network = kind.make(context)
        assert isinstance(network, ImageFeatures), "both kinds compute features of images"
        return cls(network, patches=PatchSet.open(context.inputs["patches"]))

    @classmethod
    def load(cls, sources: Sources) -> Features:
        kind = PretrainedFeatures if sources.encoder.encoder is not None else PerceptualFeatures
        network = kind.load(sources)
        assert isinstance(network, ImageFeatures), "both kinds compute features of images"
        return cls(network, patches=None)

    def save(self, folder: Path) -> EncoderRecord:
        return self.network.save(folder)

    @property
    def of_surroundings(self) -> bool:
        return True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.network.shape

    @property
    def views(self) -> int:
        return 0

    def compute_rows(self, rows_N: np.ndarray) -> Tensor:
        assert self.patches is not None, "rows are computed in the stage, which has its patches"
        return self.compute_images(self.patches.surroundings(rows_N)).cpu()

    def compute_views(self, rows_N: np.ndarray) -> Tensor:
        raise AssertionError(f"a field has no other views, and {len(rows_N)} were asked for")

    def compute_images(self, images_NHW3: np.ndarray) -> Tensor:
        """Images of fields, uint8 (N, S, S, 3); float32 (N, D), on the network's device."""
        return self.network.compute_images(images_NHW3)
