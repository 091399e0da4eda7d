"""The features behind LPIPS: an ImageNet classifier's activations at every tap, averaged over the image.

All taps are taken: the early ones see sharpness and grain, which a generator loses first, the late ones structures.
At every place the channels of a tap are brought to unit length, as LPIPS does, so that each tap weighs the same. Legend
of shapes: B images, C channels of a tap, D features (alex 1,152; squeeze 2,240; vgg 1,472).
"""

from __future__ import annotations

import numpy as np
import torch

from histoloom.autoencoder.lpips import LPIPS, MIN_SIZE, Trunk, unit_length
from histoloom.errors import UserError
from histoloom.evaluation.extractors.base import Extractor, Maker, Sources
from histoloom.run.directory import fingerprint
from histoloom.training.devices import full_precision

VERSION = "unit-mean-1"


class LpipsTrunk(Extractor):
    """Mean over places of the unit-length activations, all taps one after the other."""

    least = MIN_SIZE

    def __init__(self, trunk: Trunk, *, network: LPIPS, device: torch.device) -> None:
        self.trunk = trunk
        self.device = device
        self.network = network.to(device)
        self._digest = fingerprint([VERSION, trunk, float(sum(p.double().sum() for p in network.parameters()))])

    @property
    def name(self) -> str:
        return f"lpips-{self.trunk}"

    @property
    def digest(self) -> str:
        return self._digest

    def block(self, images_BHW3: np.ndarray) -> np.ndarray:
        x_B3HW = torch.from_numpy(images_BHW3).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode(), full_precision():
            taps = [unit_length(tap).mean(dim=(2, 3)) for tap in self.network.features(x_B3HW)]
        return torch.cat(taps, dim=1).cpu().numpy()


def maker(trunk: Trunk) -> Maker:
    """Makes ``lpips-alex``, ``lpips-squeeze`` or ``lpips-vgg``."""

    def make(rest: str, sources: Sources) -> LpipsTrunk:
        if rest:
            raise UserError(f"the extractor lpips-{trunk} takes no name; write lpips-{trunk}")
        network = LPIPS.load(trunk, download=sources.download)
        return LpipsTrunk(trunk, network=network, device=sources.device)

    return make
