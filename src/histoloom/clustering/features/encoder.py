"""Features of somebody else's encoder (``clustering.foreign_encoders``), which stays where it is: not copied.

Legend of shapes: B a block of pictures, H x W px, D features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from histoloom.clustering.features.base import BLOCK, Features, Kind, Sources
from histoloom.clustering.features.pictures import PictureFeatures, Pictures
from histoloom.clustering.features.pretrained import PretrainedEncoder, load_encoder
from histoloom.errors import UserError
from histoloom.run.stage import StageContext
from histoloom.training.devices import accelerator


class EncoderFeatures(PictureFeatures):
    """What the encoder called ``name`` says of whole patches."""

    def __init__(
        self, encoder: PretrainedEncoder, *, name: str, pictures: Pictures | None, device: torch.device
    ) -> None:
        super().__init__(pictures=pictures, device=device)
        self.encoder = encoder
        self.name = name
        blank_BHW3 = torch.zeros(BLOCK, encoder.side, encoder.side, 3, dtype=torch.uint8, device=device)
        with torch.no_grad():
            self._shape = tuple(self.of_block(blank_BHW3).shape[1:])

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def of_block(self, x_BHW3: Tensor) -> Tensor:
        return self.encoder.features(x_BHW3)

    def save(self, folder: Path) -> dict[str, Any]:  # noqa: ARG002 - an encoder of gigabytes is named, not copied
        return {"encoder": self.name, "digest": self.encoder.digest}


def make(context: StageContext) -> Features:
    """The encoder that the configuration names, on the run's patches."""
    name = context.config.clusters.encoder
    assert name is not None, "the configuration asks for it with this kind"
    device = accelerator(context.config.runtime).device
    return EncoderFeatures(load_encoder(name, device=device), name=name, pictures=Pictures.of(context), device=device)


def load(sources: Sources) -> Features:
    """The same encoder, for prediction; ``UserError`` where it is gone or another by now."""
    name = str(sources.said["encoder"])
    encoder = load_encoder(name, device=sources.device)
    if encoder.digest != sources.said["digest"]:
        raise UserError(f"{name} is not the encoder that the clusters were made with; put that one back")
    return EncoderFeatures(encoder, name=name, pictures=None, device=sources.device)


KIND = Kind(make, load)
