"""Feature extractors: what turns images into the features that sets of images are compared by.

A new extractor is a subclass of ``Extractor``, a name in ``KINDS`` and a branch of ``make_extractor``. Legend of
shapes: N images, B of a block, H x W px, C channels, D features. Images are RGB uint8 0..255.
"""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from histoloom.autoencoder.lpips import LPIPS, MIN_SIZE, Trunk, unit_length
from histoloom.clustering.features.latents import LatentEncoder, pooled
from histoloom.clustering.features.pretrained import PretrainedEncoder, load_encoder
from histoloom.errors import UserError
from histoloom.run.directory import fingerprint
from histoloom.run.user import expand_home
from histoloom.training.devices import full_precision
from histoloom.training.memory import in_fitting_parts
from histoloom.training.transfers import put_array

BLOCK = 8
"""images that a network sees at once on a CPU, always: sums differ in the last bit between batch sizes"""
MAX_THREADS = 16
"""blocks that are computed at once, which bounds memory"""
GPU_BLOCK, GPU_PIXELS = 64, 2**22
"""on a GPU: images that a network sees at once, and px of them; VGG-16 takes about 3 GB for these"""


class Extractor(ABC):
    """Features of images. They depend on the image alone: not on its place, its neighbours or the batch.

    ``name`` stands with every number; ``digest`` is of all that the features depend on besides the image (weights,
    version, settings); ``min_size`` is the least side of an image, px; ``device`` computes.
    """

    name: str
    digest: str
    min_size: int
    device: torch.device

    @abstractmethod
    def block_features(self, images_BHW3: np.ndarray) -> Tensor:
        """Features of a block of images, float32 (B, D) on the device."""

    def features(self, images_NHW3: np.ndarray) -> np.ndarray:
        """Features of any number of images, uint8 (N, H, W, 3); float32 (N, D).

        On a GPU the CPU waits once, for the features of all images.
        """
        on_cpu = self.device.type == "cpu"
        _, height, width, _ = images_NHW3.shape
        size = BLOCK if on_cpu else max(BLOCK, min(GPU_BLOCK, GPU_PIXELS // (height * width)))

        def block(start: int) -> Tensor:
            images = images_NHW3[start : start + size]
            padding = np.repeat(images[-1:], size - len(images), axis=0)
            padded = np.concatenate([images, padding])
            parts = in_fitting_parts(self.block_features, padded, name=f"features of images, {self.name}")
            return torch.cat(parts)[: len(images)]

        starts = range(0, len(images_NHW3), size)
        threads = torch.get_num_threads()
        # Full precision is a process-wide setting: threads that set it by themselves would take it from one another.
        with full_precision():
            if threads == 1 or not on_cpu:
                return torch.cat([block(start) for start in starts]).cpu().numpy()
            # Each block is computed on one thread: sums differ in the last bit between numbers of threads.
            workers = min(threads, MAX_THREADS)
            try:
                with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                    return torch.cat(list(pool.map(block, starts))).numpy()
            finally:
                torch.set_num_threads(threads)


class Pixels(Extractor):
    """Colours and coarse layout: the image at 8 x 8 px, then each channel's mean, deviation and cube root of the third
    moment, 201 numbers. Always at hand, blind to texture.
    """

    name = "pixels"
    digest = "pixels-1"
    min_size = 8
    device = torch.device("cpu")

    def block_features(self, images_BHW3: np.ndarray) -> Tensor:
        x_B3HW = torch.from_numpy(images_BHW3).permute(0, 3, 1, 2).double() / 255
        small_BD = F.adaptive_avg_pool2d(x_B3HW, self.min_size).flatten(1)
        mean_B3 = x_B3HW.mean(dim=(2, 3))
        centred_B3HW = x_B3HW - mean_B3[:, :, None, None]
        squares_B3HW = centred_B3HW.square()
        deviation_B3 = squares_B3HW.mean(dim=(2, 3)).sqrt()
        third_B3 = (squares_B3HW * centred_B3HW).mean(dim=(2, 3))
        skew_B3 = third_B3.sign() * third_B3.abs().pow(1 / 3)
        return torch.cat([small_BD, mean_B3, deviation_B3, skew_B3], dim=1).float()


class LpipsTrunk(Extractor):
    """The features behind LPIPS: an ImageNet classifier's activations at every tap, averaged over the image.

    All taps are used: the early ones see sharpness and grain, which a generator loses first, the late ones structures.
    At every place the channels of a tap are brought to unit length, as LPIPS does, so that each tap weighs the same.
    D: alex 1,152; squeeze 2,240; vgg 1,472.
    """

    min_size = MIN_SIZE

    def __init__(self, trunk: Trunk, *, network: LPIPS, device: torch.device) -> None:
        self.name = f"lpips-{trunk}"
        self.digest = fingerprint(["unit-mean-1", trunk, float(sum(p.double().sum() for p in network.parameters()))])
        self.device = device
        self.network = network.to(device)

    def block_features(self, images_BHW3: np.ndarray) -> Tensor:
        x_B3HW = put_array(images_BHW3, self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode(), full_precision():
            taps = [unit_length(tap_BCHW).mean(dim=(2, 3)) for tap_BCHW in self.network.features(x_B3HW)]
        return torch.cat(taps, dim=1)


class RunEncoder(Extractor):
    """Mean and deviation over an image of each channel of the run's latents, before quantisation; D = 2 C.

    The VQ-GAN was trained to rebuild these very patches, and the generator on its latents, so that it favours the
    generator: use it as a check, never alone.
    """

    name = "encoder"
    min_size = 16

    def __init__(self, autoencoder: Path, *, device: torch.device) -> None:
        self.encoder = LatentEncoder(autoencoder, device=device)
        self.device = device
        with (autoencoder / "autoencoder.safetensors").open("rb") as file:
            self.digest = fingerprint(["pooled-1", hashlib.file_digest(file, "sha256").hexdigest()])

    def block_features(self, images_BHW3: np.ndarray) -> Tensor:
        with torch.inference_mode(), full_precision():
            z_BChw = self.encoder.encode(put_array(images_BHW3, self.device))
        return pooled(z_BChw)


class Inception(Extractor):
    """The 2,048 pooled features of Inception-v3 as FID means it, where the user gives its weights.

    They are the TorchScript network of 2015-12-05 that StyleGAN's and clean-fid's metrics use: called with uint8 images
    (B, 3, H, W) and ``return_features=True`` it resizes them itself. Whether a file is that network cannot be seen from
    here, so its digest stands in the extractor's name.
    """

    dimension = 2048
    min_size = 32

    def __init__(self, network: torch.nn.Module, *, digest: str, device: torch.device) -> None:
        self.name = f"inception ({digest[:8]})"
        self.digest = digest
        self.network = network.to(device)
        self.device = device

    @classmethod
    def load(cls, file: str, *, device: torch.device) -> Self:
        """The network of a file; ``UserError`` where there is none, or another one."""
        path = expand_home(file, setting="inception")
        if not file or not path.is_file():
            raise UserError(
                f"the extractor inception needs the file of its weights, got {file!r}; write inception:FILE"
            )
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()[:16]
        try:
            # Such a file holds code: docs say to take it from its publisher only.
            with warnings.catch_warnings():
                # The weights that the name FID means are published in this format.
                warnings.filterwarnings("ignore", message="`torch.jit.load` is deprecated", category=DeprecationWarning)
                network: torch.nn.Module = torch.jit.load(str(path), map_location="cpu").eval()
            extractor = cls(network, digest=digest, device=device)
            shape = extractor.block_features(np.zeros((BLOCK, 64, 64, 3), np.uint8)).shape
        except (RuntimeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is not the TorchScript Inception network of 2015-12-05; give that file") from error
        if shape != (BLOCK, cls.dimension):
            raise UserError(
                f"{path} gives {shape[-1]} features, not Inception's {cls.dimension}; give the network of 2015-12-05"
            )
        return extractor

    def block_features(self, images_BHW3: np.ndarray) -> Tensor:
        x_B3HW = put_array(images_BHW3, self.device).permute(0, 3, 1, 2).contiguous()
        with torch.inference_mode(), full_precision():
            features_BD: Tensor = self.network(x_B3HW, return_features=True)
        return features_BD.float()


class PretrainedExtractor(Extractor):
    """Features of whole images by a pretrained encoder of Hugging Face or timm, which resizes them."""

    min_size = 8

    def __init__(self, encoder: PretrainedEncoder, *, name: str, device: torch.device) -> None:
        self.name = name
        self.digest = encoder.digest
        self.encoder = encoder
        self.device = device

    def block_features(self, images_BHW3: np.ndarray) -> Tensor:
        with torch.inference_mode(), full_precision():
            x_BD = self.encoder.features(put_array(images_BHW3, self.device))
        return x_BD.float()


# --- by name: KIND or KIND:REST


@dataclass(frozen=True)
class ExtractorSources:
    """What an extractor may be made of: the ``device``, and the ``autoencoder`` stage of a run, where there is one.

    ``download``: weights that are not on this machine may be downloaded.
    """

    device: torch.device
    autoencoder: Path | None = None
    download: bool = False


KINDS = ("pixels", *(f"lpips-{trunk}" for trunk in get_args(Trunk)), "encoder", "inception", "hf", "timm")


def make_extractor(name: str, *, sources: ExtractorSources) -> Extractor:
    """The extractor called ``KIND`` or ``KIND:REST``; ``UserError`` where it is unknown or cannot be made."""
    kind, _, rest = name.partition(":")
    _require_kind(kind)
    device = sources.device
    if kind == "inception":
        return Inception.load(rest, device=device)
    if kind in ("hf", "timm"):
        return PretrainedExtractor(load_encoder(name, device=device), name=name, device=device)
    if rest:
        raise UserError(f"the extractor {kind} takes no name, got {name}; write {kind}")
    if kind == "pixels":
        return Pixels()
    if kind == "encoder":
        if sources.autoencoder is None:
            raise UserError("the extractor encoder is a run's own; for folders choose another extractor")
        return RunEncoder(sources.autoencoder, device=device)
    trunk = next(trunk for trunk in get_args(Trunk) if kind == f"lpips-{trunk}")
    return LpipsTrunk(trunk, network=LPIPS.load(trunk, download=sources.download), device=device)


def make_extractors(
    names: Sequence[str], *, sources: ExtractorSources, size: int
) -> tuple[list[Extractor], dict[str, str]]:
    """The extractors that can be used on images whose shorter side is ``size`` px, and for each other one why not.

    Raises ``UserError`` for a name that is unknown.
    """
    extractors: list[Extractor] = []
    missing: dict[str, str] = {}
    for name in dict.fromkeys(names):
        _require_kind(name.partition(":")[0])
        try:
            extractor = make_extractor(name, sources=sources)
        except UserError as error:
            missing[name] = str(error)
            continue
        if size < extractor.min_size:
            missing[name] = f"images of {size} px are too small for it; it needs at least {extractor.min_size} px"
        else:
            extractors.append(extractor)
    return extractors, missing


def _require_kind(kind: str) -> None:
    if kind not in KINDS:
        raise UserError(f"no extractor is called {kind!r}; known are {', '.join(KINDS)}")
