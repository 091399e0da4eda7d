"""Encoders of others, from this machine's disk: ``hf:NAME`` and ``timm:NAME`` (clustering/foreign_encoders.py)."""

from __future__ import annotations

import numpy as np
import torch

from histoloom.clustering.foreign_encoders import ForeignEncoder, load_encoder
from histoloom.devices import full_precision
from histoloom.evaluation.extractors.base import Extractor, Maker, Sources

LEAST = 8


class Foreign(Extractor):
    """What somebody else's encoder says of whole images, brought to its size."""

    least = LEAST

    def __init__(self, encoder: ForeignEncoder, *, name: str, device: torch.device) -> None:
        self.encoder = encoder
        self.device = device
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    @property
    def digest(self) -> str:
        return self.encoder.digest

    def block(self, images_BHW3: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), full_precision():
            x_BD = self.encoder.features(torch.from_numpy(images_BHW3).to(self.device))
        return x_BD.float().cpu().numpy()


def maker(library: str) -> Maker:
    """Makes ``hf:NAME`` or ``timm:NAME``; ``UserError`` where it is not on this machine."""

    def make(rest: str, sources: Sources) -> Foreign:
        name = f"{library}:{rest}"
        return Foreign(load_encoder(name, device=sources.device), name=name, device=sources.device)

    return make
