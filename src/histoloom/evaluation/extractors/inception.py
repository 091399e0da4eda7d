"""Inception-v3 as FID means it, where the user gives its weights: ``inception:FILE``.

FILE is the TorchScript network of 2015-12-05 that StyleGAN's and clean-fid's metrics use: called with uint8 images (B,
3, H, W) and ``return_features=True`` it resizes them itself and gives 2,048 features. Such a file holds code: take it
from its publisher only. Whether it is that network cannot be seen from here; its digest stands in the extractor's name.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import torch

from histoloom.errors import UserError
from histoloom.evaluation.extractors.base import BLOCK, Extractor, Sources
from histoloom.training.devices import full_precision

DIMENSION = 2048
LEAST = 32


class Inception(Extractor):
    """The 2,048 pooled features."""

    least = LEAST

    def __init__(self, network: torch.nn.Module, *, digest: str, device: torch.device) -> None:
        self.network = network.to(device)
        self.device = device
        self._digest = digest

    @property
    def name(self) -> str:
        return f"inception ({self._digest[:8]})"

    @property
    def digest(self) -> str:
        return self._digest

    def block(self, images_BHW3: np.ndarray) -> np.ndarray:
        x_B3HW = torch.from_numpy(images_BHW3).to(self.device).permute(0, 3, 1, 2).contiguous()
        with torch.inference_mode(), full_precision():
            features_BD: torch.Tensor = self.network(x_B3HW, return_features=True)
        return features_BD.float().cpu().numpy()


def _load(path: Path) -> torch.nn.Module:
    with warnings.catch_warnings():
        # The weights that the name FID means are published in this format.
        warnings.filterwarnings("ignore", message="`torch.jit.load` is deprecated", category=DeprecationWarning)
        network: torch.nn.Module = torch.jit.load(str(path), map_location="cpu")
    return network.eval()


def make(rest: str, sources: Sources) -> Inception:
    """``inception:FILE``; ``UserError`` where the file is no such network."""
    path = Path(rest).expanduser()
    if not rest or not path.is_file():
        raise UserError(f"the extractor inception needs the file of its weights, got {rest!r}; write inception:FILE")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    try:
        network = _load(path)
        extractor = Inception(network, digest=digest, device=sources.device)
        shape = extractor.block(np.zeros((BLOCK, 64, 64, 3), np.uint8)).shape
    except (RuntimeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not the TorchScript Inception network of 2015-12-05; give that file") from error
    if shape != (BLOCK, DIMENSION):
        raise UserError(
            f"{path} gives {shape[-1]} features, not Inception's {DIMENSION}; give the network of 2015-12-05"
        )
    return extractor
