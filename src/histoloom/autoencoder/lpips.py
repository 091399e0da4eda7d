"""LPIPS v0.1, the learned perceptual image patch similarity (Zhang et al., CVPR 2018, arXiv:1801.03924).

The networks first, then their weights. A trunk's weights are looked for in the folder that ``HISTOLOOM_WEIGHTS`` names,
then in torch hub's cache, and are downloaded to that cache from torchvision's official address where this is allowed.
A file whose SHA-256 is known, from this module or (as torch hub has it) from its own name, is checked before use.

Shapes: N images, C channels, H x W px. Images are RGB in -1..1. The trunks carry torchvision's parameter names, so
that its published ImageNet weights fit, without torchvision itself.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from histoloom.config import LPIPS_MIN_SIZE
from histoloom.errors import UserError
from histoloom.run.directory import disk_errors_explained, replacing
from histoloom.run.user import expand_home

logger = logging.getLogger("histoloom")

Trunk = Literal["alex", "squeeze", "vgg"]
Tensors = dict[str, Tensor]

MIN_SIZE = LPIPS_MIN_SIZE
ENVIRONMENT = "HISTOLOOM_WEIGHTS"
TIMEOUT_SECONDS = 10.0

# LPIPS's own constants: ImageNet's channel means and deviations, moved from 0..1 to -1..1.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-8

_TAPS: dict[Trunk, tuple[int, ...]] = {
    "alex": (1, 4, 7, 9, 11),
    "squeeze": (1, 4, 7, 9, 10, 11, 12),
    "vgg": (3, 8, 15, 22, 29),
}
_HEAD_CHANNELS: dict[Trunk, tuple[int, ...]] = {
    "alex": (64, 192, 384, 256, 256),
    "squeeze": (64, 128, 256, 384, 384, 512, 512),
    "vgg": (64, 128, 256, 512, 512),
}


class LPIPS(nn.Module):
    """The distance of Zhang et al. (2018), equation 1, with frozen weights.

    ``heads`` are the non-negative channel weights of each tap, (C,) each.
    """

    shift_1C11: Tensor
    scale_1C11: Tensor

    def __init__(self, trunk: FeatureTrunk, *, heads: Sequence[Tensor]) -> None:
        super().__init__()
        assert len(heads) == len(trunk.taps), "a head for each tap"
        self.trunk = trunk
        self.heads = nn.ParameterList([nn.Parameter(head_C, requires_grad=False) for head_C in heads])
        self.register_buffer("shift_1C11", torch.tensor(_SHIFT)[None, :, None, None], persistent=False)
        self.register_buffer("scale_1C11", torch.tensor(_SCALE)[None, :, None, None], persistent=False)
        self.requires_grad_(requires_grad=False).eval()

    @staticmethod
    def load(trunk: Trunk, *, download: bool = True) -> LPIPS:
        """LPIPS with its published weights.

        ``download`` allows a download from torchvision's address. Raises ``UserError`` in one line where there are no
        weights, or they are not the published ones.
        """
        file = find_weights(trunk, download=download)
        if file is None:
            files = FILES[trunk]
            places = ", ".join(str(folder) for folder in search_folders()) or "a cache, as no home folder is known"
            network = f", and {files.url} could not be downloaded" if download else ""
            raise UserError(
                f"no weights for LPIPS's {trunk} trunk: not in {places}{network}; set {ENVIRONMENT} to a folder that "
                f"holds {files.npz} or {files.pth}, or use autoencoder.perceptual=pyramid"
            )
        trunk_tensors, head_tensors = file.read()
        # On the meta device nothing is initialised, so that the global random stream stays where it is.
        with torch.device("meta"):
            network_trunk = FeatureTrunk(trunk)
        try:
            network_trunk.load_state_dict(trunk_tensors, assign=True)
            heads = [
                head_tensors[f"lin{number}.model.1.weight"].reshape(channels)
                for number, channels in enumerate(_HEAD_CHANNELS[trunk])
            ]
        except (RuntimeError, KeyError) as error:
            raise UserError(f"{file.path} does not hold the weights of LPIPS's {trunk} trunk") from error
        return LPIPS(network_trunk, heads=heads)

    @staticmethod
    def blank(trunk: Trunk) -> LPIPS:
        """LPIPS without weights, to see what it costs."""
        return LPIPS(FeatureTrunk(trunk), heads=[torch.zeros(channels) for channels in _HEAD_CHANNELS[trunk]])

    def features(self, x_NCHW: Tensor) -> list[Tensor]:
        """The trunk's activations at each tap, (N, C, H', W') each, for RGB images in -1..1."""
        if min(x_NCHW.shape[-2:]) < MIN_SIZE:
            raise ValueError(f"LPIPS needs images of at least {MIN_SIZE} px, got {tuple(x_NCHW.shape[-2:])}")
        activations: list[Tensor] = self.trunk((x_NCHW - self.shift_1C11) / self.scale_1C11)
        return activations

    def forward(self, x_NCHW: Tensor, y_NCHW: Tensor) -> Tensor:
        """Distances (N,), 0 for equal images, of two sets of RGB images in -1..1."""
        return self.distance(self.features(x_NCHW), self.features(y_NCHW))

    def distance(self, x_taps: Sequence[Tensor], y_taps: Sequence[Tensor]) -> Tensor:
        """Distances (N,) of two sets of images by what ``features`` gives of each."""
        distance_N = x_taps[0].new_zeros(len(x_taps[0]), dtype=torch.float32)
        for head_C, fx_NCHW, fy_NCHW in zip(self.heads, x_taps, y_taps, strict=True):
            difference_NC = (unit_length(fx_NCHW) - unit_length(fy_NCHW)).square().mean(dim=(2, 3))
            distance_N = distance_N + (difference_NC * head_C).sum(dim=1)
        return distance_N


def unit_length(features_NCHW: Tensor) -> Tensor:
    """Each position's channel vector at length 1, in float32 because the epsilon is 0 in half precision."""
    features_NCHW = features_NCHW.float()
    return features_NCHW / (features_NCHW.square().sum(dim=1, keepdim=True) + _EPSILON).sqrt()


# -- the trunks -------------------------------------------------------------------------------------------------


class FeatureTrunk(nn.Module):
    """The convolutional features of an ImageNet classifier, tapped after LPIPS's layers."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        layers = {"alex": _alex_layers, "squeeze": _squeeze_layers, "vgg": _vgg_layers}[trunk]()
        self.features = nn.Sequential(*layers)
        self.taps = _TAPS[trunk]

    def forward(self, x_NCHW: Tensor) -> list[Tensor]:
        """The tapped activations of images in the trunk's own normalisation."""
        activations = []
        for number, layer in enumerate(self.features):
            x_NCHW = layer(x_NCHW)
            if number in self.taps:
                activations.append(x_NCHW)
        return activations


def _alex_layers() -> list[nn.Module]:
    """AlexNet as of Krizhevsky (2014), "One weird trick"."""
    return [
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    ]


class Fire(nn.Module):
    """SqueezeNet's block (Iandola et al. 2016): a narrow 1 x 1 layer, then 1 x 1 and 3 x 3 layers side by side."""

    def __init__(self, channels: int, *, narrow: int, wide: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, narrow, 1)
        self.expand1x1 = nn.Conv2d(narrow, wide, 1)
        self.expand3x3 = nn.Conv2d(narrow, wide, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, 2 wide, H, W)."""
        narrow_NCHW = self.squeeze(x_NCHW).relu()
        return torch.cat([self.expand1x1(narrow_NCHW).relu(), self.expand3x3(narrow_NCHW).relu()], dim=1)


def _squeeze_layers() -> list[nn.Module]:
    """SqueezeNet 1.1 (Iandola et al. 2016)."""
    return [
        nn.Conv2d(3, 64, 3, stride=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Fire(64, narrow=16, wide=64),
        Fire(128, narrow=16, wide=64),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Fire(128, narrow=32, wide=128),
        Fire(256, narrow=32, wide=128),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Fire(256, narrow=48, wide=192),
        Fire(384, narrow=48, wide=192),
        Fire(384, narrow=64, wide=256),
        Fire(512, narrow=64, wide=256),
    ]


def _vgg_layers() -> list[nn.Module]:
    """VGG-16 (Simonyan & Zisserman 2015), configuration D, up to the last tap's block."""
    layers: list[nn.Module] = []
    channels = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2, stride=2))
    return layers


# -- the weights ------------------------------------------------------------------------------------------------

_ADDRESS = "https://download.pytorch.org/models"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class TrunkFiles:
    """The files that a trunk's weights come in."""

    npz: str
    """trunk and heads in one NumPy archive"""
    npz_sha256: str | None
    pth: str
    """the trunk alone, as torchvision publishes it"""

    @property
    def url(self) -> str:
        """torchvision's official address of the trunk."""
        return f"{_ADDRESS}/{self.pth}"


FILES: dict[Trunk, TrunkFiles] = {
    "alex": TrunkFiles(
        "lpips_alex_v0.1_fp32.npz",
        "a22abd613e652d1aaab35d66fd22ea034a6cd064039b450fca4669adeb8eb492",
        "alexnet-owt-7be5be79.pth",
    ),
    "squeeze": TrunkFiles(
        "lpips_squeeze_v0.1_fp32.npz",
        "80b594e4bb4a1a1a86466dacee67cca1f6f2e84390a1d4e828cbc2c6284b9a41",
        "squeezenet1_1-b8a52dc0.pth",
    ),
    "vgg": TrunkFiles("lpips_vgg_v0.1_fp32.npz", None, "vgg16-397923af.pth"),
}


@dataclass(frozen=True)
class WeightsFile:
    """A file that holds a trunk's weights, and the leading hex digits of its SHA-256 where they are known."""

    path: Path
    trunk: Trunk
    sha256: str | None

    def read(self) -> tuple[Tensors, Tensors]:
        """The trunk's tensors and the heads', under torchvision's and LPIPS's names.

        Raises ``UserError`` where the file is not what its name says.
        """
        require_published(self.path, expected=self.sha256)
        try:
            if self.path.suffix == ".npz":
                with self.path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                    tensors = {name: torch.from_numpy(archive[name]) for name in archive.files}
            else:
                tensors = _read_pth(self.path)
        except (OSError, ValueError, RuntimeError, UnpicklingError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.path} cannot be read as weights; replace it by a whole copy") from error
        trunk = {name: value for name, value in tensors.items() if name.startswith("features.")}
        heads = {name: value for name, value in tensors.items() if name.startswith("lin")}
        return trunk, heads or read_heads(self.trunk)


def search_folders() -> list[Path]:
    """Where weights are looked for, first place first; ``UserError`` where the environment names no folder."""
    # Without a home folder torch hub's cache begins with "~", as it stands.
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    caches = [cache] if cache.is_absolute() else []
    name = os.environ.get(ENVIRONMENT)
    if not name:
        return caches
    folder = expand_home(name, setting=ENVIRONMENT)
    if not folder.is_dir():
        raise UserError(f"{ENVIRONMENT} is {name!r}, which is no folder; name one that exists, or unset it")
    return [folder, *caches]


def find_weights(trunk: Trunk, *, download: bool) -> WeightsFile | None:
    """The file that holds ``trunk``'s weights, or None where there is none (the log says why a download failed)."""
    files, folders = FILES[trunk], search_folders()
    for folder in folders:
        if (folder / files.npz).is_file():
            return WeightsFile(folder / files.npz, trunk, files.npz_sha256)
        if (folder / files.pth).is_file():
            return WeightsFile(folder / files.pth, trunk, hub_hash(files.pth))
    if not download or not folders:
        return None
    target = folders[-1] / files.pth
    try:
        fetch(files.url, target=target, sha256=hub_hash(files.pth))
    except (OSError, HTTPException) as error:
        logger.warning("%s could not be downloaded: %s", files.url, error)
        return None
    return WeightsFile(target, trunk, hub_hash(files.pth))


def hub_hash(name: str) -> str | None:
    """The leading hex digits of the SHA-256 that a file of torch hub carries in its name."""
    match = re.search(r"-([0-9a-f]{8,})\.pth$", name)
    return match.group(1) if match else None


def fetch(url: str, *, target: Path, sha256: str | None) -> None:
    """Download ``url`` to ``target``, which appears whole and checked or not at all.

    Raises ``UserError`` where the content is not the expected one, ``OSError`` where the network fails.
    """
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, disk_errors_explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            with temporary.open("wb") as file:
                while chunk := response.read(_CHUNK_BYTES):
                    file.write(chunk)
            require_published(temporary, expected=sha256, name=url)


def read_heads(trunk: Trunk) -> Tensors:
    """The linear heads of LPIPS v0.1, from the files that torchmetrics ships."""
    spec = importlib.util.find_spec("torchmetrics")
    assert spec is not None, "torchmetrics is a dependency"
    assert spec.origin is not None, "torchmetrics is a regular package"
    return _read_pth(Path(spec.origin).parent / "functional" / "image" / "lpips_models" / f"{trunk}.pth")


def require_published(path: Path, *, expected: str | None, name: str | None = None) -> None:
    """``UserError`` where the file's SHA-256 does not begin with ``expected``; nothing where that is None."""
    if expected is None:
        return
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(expected):
        raise UserError(
            f"{name or path} is not the published file: its SHA-256 is {actual[:16]}..., "
            f"expected {expected[:16]}{'...' if len(expected) > 16 else ''}; replace it by a fresh copy"
        )


def _read_pth(path: Path) -> Tensors:
    tensors: Tensors = torch.load(path, map_location="cpu", weights_only=True)
    return tensors
