"""The run's own encoder: mean and deviation of its latents' channels over an image.

It was trained to rebuild these very patches and the generator was trained on its latents, so that it is a friendly
judge: a check on the generator, never the only evidence. Legend of shapes: B images, C channels, D = 2 C features.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from histoloom.clustering.features.latents import Encoder
from histoloom.clustering.features.validity import pooled
from histoloom.errors import UserError
from histoloom.evaluation.extractors.base import Extractor, Sources
from histoloom.run.directory import fingerprint
from histoloom.training.devices import full_precision

VERSION = "pooled-1"
LEAST = 16


class RunEncoder(Extractor):
    """Pooled latents of the run's VQ-GAN, before quantisation."""

    name = "encoder"
    least = LEAST

    def __init__(self, sources: Sources) -> None:
        assert sources.autoencoder is not None, "make() asked for it"
        self.encoder = Encoder(sources.autoencoder, device=sources.device)
        self.device = sources.device
        with (sources.autoencoder / "autoencoder.safetensors").open("rb") as file:
            self._digest = fingerprint([VERSION, hashlib.file_digest(file, "sha256").hexdigest()])

    @property
    def digest(self) -> str:
        return self._digest

    def block(self, images_BHW3: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), full_precision():
            z_BChw = self.encoder.encode(torch.from_numpy(images_BHW3).to(self.device))
        return pooled(z_BChw).cpu().numpy()


def make(rest: str, sources: Sources) -> RunEncoder:
    """``encoder``; ``UserError`` outside a run."""
    if rest or sources.autoencoder is None:
        raise UserError("the extractor encoder is a run's own and takes no name; for folders choose another extractor")
    return RunEncoder(sources)
