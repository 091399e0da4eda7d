"""Features of whole patches by the middle layers of an ImageNet classifier.

What such layers respond to agrees better with what people see than pixels do (Zhang et al., CVPR 2018), and the means
of their activations over positions describe texture wherever it lies in a patch. Tissue has no upright position:
features are means over the image and the image turned by a quarter.

Shapes: B a block of images, H x W px, C channels of a tap, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from histoloom.autoencoder.lpips import LPIPS
from histoloom.autoencoder.vqgan import to_float
from histoloom.clustering.features.base import EncoderRecord, Features, Sources
from histoloom.clustering.features.efficientnet import SHA256, EfficientNetLite0
from histoloom.clustering.features.images import ImageFeatures, PatchImages
from histoloom.config import LPIPS_MIN_SIZE, PerceptualTrunk
from histoloom.errors import UserError
from histoloom.run.stage import StageContext
from histoloom.training.devices import accelerator

LAST_TAPS = 3  # of LPIPS's trunks: earlier ones respond to edges and colours
TURNS = 2
"""Quarters of a turn over which features are averaged, the image as it is being the first."""


class PerceptualFeatures(ImageFeatures):
    """Means over two turns and all positions of a trunk's activations, all taps side by side, (B, D)."""

    def __init__(self, trunk: PerceptualTrunk, *, images: PatchImages | None, device: torch.device) -> None:
        super().__init__(images=images, device=device)
        self.trunk = trunk
        self.activations, self.digest = _load(trunk, device=device)
        blank_13HW = torch.zeros(1, 3, LPIPS_MIN_SIZE, LPIPS_MIN_SIZE, device=device)
        with torch.no_grad():
            self._shape = (sum(tap_1CHW.shape[1] for tap_1CHW in self.activations(blank_13HW)),)

    @classmethod
    def make(cls, context: StageContext) -> Features:
        """``UserError`` where there are no weights of the trunk on this machine."""
        device = accelerator(context.config.runtime).device
        return cls(context.config.clusters.trunk, images=PatchImages.of(context), device=device)

    @classmethod
    def load(cls, sources: Sources) -> Features:
        """``UserError`` where the weights are gone, or others by now."""
        trunk = sources.encoder.trunk
        assert trunk is not None, "save returns the trunk"
        features = cls(trunk, images=None, device=sources.device)
        if features.digest != sources.encoder.digest:
            raise UserError(f"the weights of {trunk} are not those that the clusters were made with; put them back")
        return features

    def save(self, folder: Path) -> EncoderRecord:  # noqa: ARG002 - public weights are named, not copied
        return EncoderRecord(trunk=self.trunk, digest=self.digest)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def of_block(self, x_BHW3: Tensor) -> Tensor:
        x_B3HW = to_float(x_BHW3)
        turns = [self.activations(x_B3HW.rot90(quarters, dims=(2, 3))) for quarters in range(TURNS)]
        means = [torch.cat([tap_BCHW.mean(dim=(2, 3)) for tap_BCHW in taps], dim=1) for taps in turns]
        return torch.stack(means).mean(dim=0)


def _load(trunk: PerceptualTrunk, *, device: torch.device) -> tuple[Callable[[Tensor], list[Tensor]], str]:
    """The activations of RGB images in -1..1 at the trunk's taps, and the digest of its weights."""
    if trunk == "efficientnet-lite0":
        return _efficientnet(device), SHA256
    lpips = LPIPS.load(trunk, download=False).to(device)
    weights = torch.cat([value.flatten() for value in lpips.trunk.state_dict().values()]).cpu()
    digest = hashlib.sha256(weights.numpy().tobytes()).hexdigest()
    return lambda x_B3HW: lpips.features(x_B3HW)[-LAST_TAPS:], digest


@cache
def _efficientnet(device: torch.device) -> EfficientNetLite0:
    """The published network, of which a process needs one a device: several stages use it, and nothing changes it."""
    return EfficientNetLite0.load().to(device)
