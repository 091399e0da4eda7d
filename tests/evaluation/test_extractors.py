"""Extractors: features of an image do not depend on the rest of the batch, and are what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from histoloom.autoencoder.lpips import LPIPS
from histoloom.autoencoder.vqgan import Autoencoder
from histoloom.config import make_config, read_preset, with_settings
from histoloom.errors import UserError
from histoloom.evaluation.extractors import (
    Extractor,
    ExtractorSources,
    LpipsTrunk,
    make_extractor,
    make_extractors,
)

CPU = ExtractorSources(torch.device("cpu"))


class Resizing(nn.Module):
    """Called as the TorchScript Inception of 2015-12-05 is; ``width`` colours' means stand for its features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert return_features
        return x.to(torch.float32).mean(dim=[1, 2, 3])[:, None].repeat(1, self.width)


@pytest.fixture
def autoencoder(tmp_path: Path) -> Path:
    values = read_preset("demo") | {"slides": {"paths": ["slides"]}}
    config = make_config(with_settings(values, ["autoencoder.channels=8"])).autoencoder
    torch.manual_seed(0)
    Autoencoder(config).save(tmp_path)
    return tmp_path


@pytest.fixture(params=["pixels", "lpips-squeeze", "encoder", "inception"])
def extractor(request: pytest.FixtureRequest, autoencoder: Path, tmp_path: Path) -> Extractor:
    name = request.param
    if name.startswith("lpips"):
        request.getfixturevalue("squeeze_weights")
    if name == "inception":
        name = f"inception:{scripted(tmp_path / 'inception.pt', width=2048)}"
    return make_extractor(name, sources=ExtractorSources(torch.device("cpu"), autoencoder=autoencoder))


def scripted(path: Path, *, width: int) -> Path:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(Resizing(width)).save(str(path))
    return path


def test_neither_batch_nor_order_changes_a_bit(extractor: Extractor, crops) -> None:
    images = crops(19, 48, seed=0)
    whole = extractor.features(images)
    assert whole.dtype == np.float32
    order = np.random.default_rng(0).permutation(19)
    assert np.array_equal(extractor.features(images[order]), whole[order])
    assert np.array_equal(np.concatenate([extractor.features(images[i : i + 5]) for i in range(0, 19, 5)]), whole)
    assert np.array_equal(extractor.features(images[3:4]), whole[3:4])


def test_pixels_are_colours_and_layout(crops) -> None:
    images = crops(3, 64, seed=1)
    features = make_extractor("pixels", sources=CPU).features(images)
    unit = images / 255
    blocks = unit.reshape(3, 8, 8, 8, 8, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2).reshape(3, -1)
    third = ((unit - unit.mean(axis=(1, 2), keepdims=True)) ** 3).mean(axis=(1, 2))
    expected = [blocks, unit.mean(axis=(1, 2)), unit.std(axis=(1, 2)), np.cbrt(third)]
    assert np.allclose(features, np.concatenate(expected, axis=1), atol=1e-6)


@pytest.mark.usefixtures("squeeze_weights")
def test_the_trunk_is_that_of_lpips(crops) -> None:
    images = crops(2, 64, seed=2)
    extractor = make_extractor("lpips-squeeze", sources=CPU)
    assert isinstance(extractor, LpipsTrunk)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    taps = LPIPS.load("squeeze", download=False).features(x)
    means = [(tap / tap.norm(dim=1, keepdim=True).clamp(min=1e-4)).mean(dim=(2, 3)) for tap in taps]
    assert np.allclose(extractor.features(images), torch.cat(means, dim=1).numpy(), atol=1e-4)


def test_digests_tell_weights_apart(autoencoder: Path) -> None:
    first = make_extractor("encoder", sources=ExtractorSources(torch.device("cpu"), autoencoder=autoencoder)).digest
    assert first != make_extractor("pixels", sources=CPU).digest
    model = Autoencoder.load(autoencoder)
    with torch.no_grad():
        next(model.encoder.parameters()).add_(1)
    model.save(autoencoder)
    assert (
        make_extractor("encoder", sources=ExtractorSources(torch.device("cpu"), autoencoder=autoencoder)).digest
        != first
    )


@pytest.mark.usefixtures("no_weights")
def test_what_cannot_be_had_says_why() -> None:
    names = ("pixels", "lpips-alex", "encoder", "inception:nowhere.pt", "pixels:8", "pixels")
    extractors, missing = make_extractors(names, sources=CPU, size=48)
    assert [extractor.name for extractor in extractors] == ["pixels"]
    assert "HISTOLOOM_WEIGHTS" in missing["lpips-alex"]
    assert "a run's own" in missing["encoder"]
    assert "inception:FILE" in missing["inception:nowhere.pt"]
    assert "write pixels" in missing["pixels:8"]
    with pytest.raises(UserError, match="no extractor is called 'resnet'; known are pixels, lpips-alex"):
        make_extractors(("pixels", "resnet"), sources=CPU, size=48)
    assert make_extractors(("pixels",), sources=CPU, size=4)[1] == {
        "pixels": "images of 4 px are too small for it; it needs at least 8 px"
    }


def test_another_network_is_not_inception(tmp_path: Path) -> None:
    wrong = scripted(tmp_path / "wrong.pt", width=12)
    with pytest.raises(UserError, match="gives 12 features"):
        make_extractor(f"inception:{wrong}", sources=CPU)
    wrong.write_bytes(b"no network")
    with pytest.raises(UserError, match="not the TorchScript"):
        make_extractor(f"inception:{wrong}", sources=CPU)
