"""Encoders of others, from this machine's disk: ``hf:NAME`` and ``timm:NAME`` (clustering/foreign_encoders.py)."""

from __future__ import annotations

import numpy as np
import torch

from histoloom.clustering.features.pretrained import PretrainedEncoder, load_encoder
from histoloom.evaluation.extractors.base import Extractor, Maker, Sources
from histoloom.training.devices import full_precision

LEAST = 8


class PretrainedExtractor(Extractor):
    """What somebody else's encoder says of whole images, brought to its size."""

    least = LEAST

    def __init__(self, encoder: PretrainedEncoder, *, name: str, device: torch.device) -> None:
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

    def make(rest: str, sources: Sources) -> PretrainedExtractor:
        name = f"{library}:{rest}"
        return PretrainedExtractor(load_encoder(name, device=sources.device), name=name, device=sources.device)

    return make
