"""The pyramid loss: a distance that charges for missing edges and missing texture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from histoloom.autoencoder.losses import PyramidLoss


def noise(n: int, *, size: int, seed: int) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("size", [8, 64, 100])
def test_is_a_symmetric_distance_an_image(size: int) -> None:
    loss = PyramidLoss()
    x, y = noise(3, size=size, seed=0), noise(3, size=size, seed=1)
    distance = loss(x, y)
    assert distance.shape == (3,)
    assert (distance > 0).all()
    assert torch.equal(loss(x, x), torch.zeros(3))
    assert torch.equal(distance, loss(y, x))
    assert torch.allclose(loss(x[:1], y[:1]), distance[:1], rtol=1e-5)


def test_bands_and_rest_hold_the_image() -> None:
    x = noise(1, size=64, seed=0)
    bands = PyramidLoss(levels=1).bands(x)
    assert torch.allclose(bands[0] + PyramidLoss()._smooth(x), x, atol=1e-6)
    assert [band.shape[-1] for band in PyramidLoss(levels=9).bands(x)] == [64, 32, 16, 8]


def test_a_change_of_brightness_costs_less_than_an_equal_one_of_detail() -> None:
    x = noise(1, size=64, seed=0) * 0.5
    checker = (torch.arange(64)[:, None] + torch.arange(64)[None, :]) % 2 * 0.4 - 0.2
    loss = PyramidLoss()
    assert loss(x, x + 0.2) < 1e-5
    assert loss(x, x + checker) > 0.1


def test_texture_of_other_grains_costs_less_than_no_texture() -> None:
    x, other, flat = noise(1, size=64, seed=0), noise(1, size=64, seed=1), torch.zeros(1, 3, 64, 64)
    assert PyramidLoss()(x, other) < PyramidLoss()(x, flat)
    assert PyramidLoss(texture_weight=0.0)(x, other) > PyramidLoss(texture_weight=0.0)(x, flat)


def test_gradient_leads_from_blur_to_the_image() -> None:
    target = noise(1, size=32, seed=0)
    x = torch.zeros_like(target, requires_grad=True)
    loss = PyramidLoss()
    optimizer = torch.optim.Adam([x], lr=0.05)
    start = loss(x, target).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss(x, target).sum().backward()
        optimizer.step()
    assert loss(x, target).item() < 0.3 * start
