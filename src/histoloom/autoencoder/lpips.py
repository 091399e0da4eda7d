"""LPIPS v0.1, the learned perceptual image patch similarity (Zhang et al., CVPR 2018, arXiv:1801.03924).

Shapes: N images, C channels, H x W px. Images are RGB in -1..1. The trunks carry torchvision's parameter names, so
that its published ImageNet weights fit, without torchvision itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from histoloom.autoencoder.weights import (
    ENVIRONMENT,
    FILES,
    Trunk,
    WeightsFile,
    find_weights,
    search_folders,
)
from histoloom.errors import UserError

MIN_SIZE = 32
"""px; below this a trunk has no place left at its last tap"""

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

        ``download`` allows a download from torchvision's address. Raises ``UserError`` in one line where the weights
        are nowhere, or are not the published ones.
        """
        found = find_weights(trunk, download=download)
        if found is None:
            raise UserError(_absent(trunk, download=download))
        return _build(found)

    def features(self, x_NCHW: Tensor) -> list[Tensor]:
        """The trunk's activations at each tap, (N, C, H', W') each, for RGB images in -1..1."""
        if min(x_NCHW.shape[-2:]) < MIN_SIZE:
            raise ValueError(f"LPIPS needs images of at least {MIN_SIZE} px, got {tuple(x_NCHW.shape[-2:])}")
        activations: list[Tensor] = self.trunk((x_NCHW - self.shift_1C11) / self.scale_1C11)
        return activations

    def forward(self, x_NCHW: Tensor, y_NCHW: Tensor) -> Tensor:
        """Distances (N,), 0 for equal images, of two sets of RGB images in -1..1."""
        distance_N = x_NCHW.new_zeros(len(x_NCHW), dtype=torch.float32)
        taps = zip(self.heads, self.features(x_NCHW), self.features(y_NCHW), strict=True)
        for head_C, fx_NCHW, fy_NCHW in taps:
            difference_NC = (unit_length(fx_NCHW) - unit_length(fy_NCHW)).square().mean(dim=(2, 3))
            distance_N = distance_N + (difference_NC * head_C).sum(dim=1)
        return distance_N


def lpips_available(trunk: Trunk) -> bool:
    """Whether ``trunk``'s weights are on this machine; asks no network."""
    return find_weights(trunk, download=False) is not None


def _build(file: WeightsFile) -> LPIPS:
    trunk_tensors, head_tensors = file.read()
    # On the meta device nothing is initialised, so that the global random stream stays where it is.
    with torch.device("meta"):
        trunk = FeatureTrunk(file.trunk)
    names = [(f"lin{i}.model.1.weight", channels) for i, channels in enumerate(_HEAD_CHANNELS[file.trunk])]
    try:
        trunk.load_state_dict(trunk_tensors, assign=True)
        heads = [head_tensors[name].reshape(channels) for name, channels in names]
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{file.path} does not hold the weights of LPIPS's {file.trunk} trunk") from error
    return LPIPS(trunk, heads=heads)


def unit_length(features_NCHW: Tensor) -> Tensor:
    """Each position's channel vector at length 1, in float32 because the epsilon is 0 in half precision."""
    features_NCHW = features_NCHW.float()
    return features_NCHW / (features_NCHW.square().sum(dim=1, keepdim=True) + _EPSILON).sqrt()


def _absent(trunk: Trunk, *, download: bool) -> str:
    files = FILES[trunk]
    places = ", ".join(str(folder) for folder in search_folders())
    network = f", and {files.url} could not be downloaded" if download else ""
    return (
        f"no weights for LPIPS's {trunk} trunk: not in {places}{network}; set {ENVIRONMENT} to a folder that holds "
        f"{files.npz} or {files.pth}, or use autoencoder.perceptual=pyramid"
    )


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
