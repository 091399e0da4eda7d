"""Latents that turn and shrink as their images do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from histoloom.autoencoder.equivariance import SHARES, Change
from histoloom.autoencoder.losses import VQGANLosses
from histoloom.autoencoder.stage import make_task
from histoloom.config import AutoencoderConfig
from histoloom.training.loop import StepContext

FACTOR = 4


def context(step: int, *, rows: slice = slice(0, 8)) -> StepContext:
    return StepContext(0, step, 0.0, torch.device("cpu"), torch.Generator().manual_seed(step), rows, 8)


def images() -> Tensor:
    return torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def encoded(x: Tensor) -> Tensor:
    """A linear code that is equivariant: the mean of each square."""
    return torch.nn.functional.avg_pool2d(x, FACTOR)


@pytest.mark.parametrize("share", SHARES)
def test_what_an_equivariant_code_says_of_changed_images_are_its_changed_latents(share: float) -> None:
    smooth = torch.nn.functional.interpolate(encoded(encoded(images())), size=32, mode="bilinear")
    change = Change(torch.arange(8), share)
    changed = change.of_images(smooth, factor=FACTOR)
    assert changed.shape[2] == round(share * 8) * FACTOR
    torch.testing.assert_close(encoded(changed), change.of_latents(encoded(smooth)), atol=0.03, rtol=0)


def test_each_step_has_its_change_whatever_part_of_the_batch_is_asked_for() -> None:
    for step in range(12):
        whole = Change.drawn(context(step), n=8, probability=0.5)
        part = Change.drawn(context(step, rows=slice(2, 5)), n=3, probability=0.5)
        assert (whole is None) == (part is None)
        if whole is not None and part is not None:
            assert whole.share == part.share
            assert whole.choice_N[2:5].tolist() == part.choice_N.tolist()


def test_the_share_of_changed_steps_is_as_asked_for() -> None:
    changes = [Change.drawn(context(step), n=8, probability=0.25) for step in range(800)]
    assert sum(change is not None for change in changes) == pytest.approx(200, abs=40)
    shares = [change.share for change in changes if change is not None]
    assert all(shares.count(share) > 40 for share in SHARES)


def config(**settings: object) -> AutoencoderConfig:
    training = {"phases": [{"optimizer": "adam", "lr": 1e-3, "images": 8}]}
    plain = {"adversarial": {"weight": 0.0}, "perceptual": "none", "perceptual_weight": 0.0, "l1_weight": 1.0}
    values = {"stem": 4, "channels": 16, "multipliers": [1], "blocks": 1, "attention": False, "training": training}
    return AutoencoderConfig.model_validate(values | plain | settings)


@pytest.mark.parametrize("space", ["plane", "sphere"])
def test_the_decoder_learns_to_make_the_changed_image_of_changed_latents(space: str) -> None:
    def distance(equivariance: float) -> float:
        """Of the decoder's images of changed latents, after training, from the changed images."""
        settings = config(equivariance=equivariance, code_dim=4, code_space=space)
        autoencoder = make_task(settings, seed=0, n=8).modules["autoencoder"]
        losses = VQGANLosses(settings, autoencoder=autoencoder, discriminator=None, perceptual=None)  # type: ignore[arg-type]
        optimizer = torch.optim.Adam(autoencoder.parameters(), lr=2e-3)
        smooth = torch.nn.functional.interpolate(encoded(images()), size=32, mode="bicubic").clamp(0, 1)
        batch = smooth.mul(255).to(torch.uint8).permute(0, 2, 3, 1)
        for step in range(150):
            loss, _ = losses.autoencoder_loss(batch, context(step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        change, x = Change(torch.arange(8), 0.5), smooth * 2 - 1
        with torch.no_grad():
            said = autoencoder.decode(autoencoder.allowed(change.of_latents(autoencoder.encode(x))))  # type: ignore[operator]
        return float((said - change.of_images(x, factor=FACTOR)).abs().mean())

    assert distance(0.5) < 0.8 * distance(0.0)


def test_without_it_nothing_is_drawn() -> None:
    settings = config(code_dim=4)
    autoencoder = make_task(settings, seed=0, n=8).modules["autoencoder"]
    losses = VQGANLosses(settings, autoencoder=autoencoder, discriminator=None, perceptual=None)  # type: ignore[arg-type]
    asked = SimpleNamespace(generator=torch.Generator().manual_seed(0))
    before = asked.generator.get_state()
    losses._views(torch.zeros(2, 16, 16, 3, dtype=torch.uint8), context=asked)  # type: ignore[arg-type]
    assert torch.equal(asked.generator.get_state(), before)
