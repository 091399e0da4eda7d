"""Clusterer and diffusion model trained together: the losses of each phase, the other view, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from histoloom import paper
from histoloom.config import Config, JointConfig, make_config, read_preset, with_settings
from histoloom.diffusion.joint import JointLoss, affine_view
from histoloom.diffusion.model.latent_space import LatentSpace
from histoloom.diffusion.model.unet import make_unet
from histoloom.errors import UserError
from histoloom.training.loop import StepContext

K, N, SIDE = 3, 10, 8
SMALL = (
    "diffusion.channels=[16, 16, 16]",
    "diffusion.attention=[true, true, true]",
    "diffusion.norm_groups=4",
    "clusters.channels=8",
    "patches.size=64",
)


def config(*settings: str) -> Config:
    values = with_settings(read_preset("paper") | {"slides": {"paths": ["/slides"]}}, [*SMALL, *settings])
    return make_config(values)


def context(*, images: int, rows: int = 4) -> StepContext:
    return StepContext(
        images=images,
        step=0,
        progress=0.0,
        device=torch.device("cpu"),
        generator=torch.Generator().manual_seed(1),
        rows=slice(0, rows),
        batch_size=rows,
    )


@pytest.fixture
def loss() -> JointLoss:
    torch.manual_seed(0)
    settings = config()
    return JointLoss(
        settings,
        k=K,
        n=N,
        unet=make_unet(settings.diffusion, shape=(16, SIDE, SIDE), conditions=K),
        clusterer=paper.Clusterer(16, channels=8, k=K, side=SIDE),
        space=LatentSpace.unscaled(16),
        view=lambda x_B3HW, _context: x_B3HW.flip(3),
        encode=lambda x_B3HW: x_B3HW.repeat(1, 6, 1, 1)[:, :16, ::8, ::8],
    )


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(4, 16, SIDE, SIDE, generator=generator), torch.randint(256, (4, 64, 64, 3), generator=generator)


def entropy(p: Tensor) -> Tensor:
    return -(p * p.log()).sum(-1)


@pytest.mark.parametrize(("epoch", "consistency"), [(0, 0.04), (599, 0.04), (730, 0.05), (799, 0.05)])
def test_the_loss_is_that_of_the_paper(
    loss: JointLoss, batch: tuple[Tensor, Tensor], epoch: int, consistency: float
) -> None:
    value, metrics = loss(batch, context(images=epoch * N))

    z_BChw, images_BHW3 = batch
    p_Bk = loss.clusterer(z_BChw).softmax(1)
    view = (images_BHW3.permute(0, 3, 1, 2).float() / 127.5 - 1).flip(3)
    q_Bk = loss.clusterer(loss.encode(view)).softmax(1)
    kl = (p_Bk * (p_Bk.log() - q_Bk.log())).sum(1).mean()
    wanted = metrics["mse"] - 0.1 * entropy(p_Bk.mean(0)) + 0.06 * entropy(p_Bk).mean() + consistency * kl
    torch.testing.assert_close(value, wanted)
    assert metrics["mse"] > 0.5  # an untrained network does not know the noise


def test_the_unet_learns_alone_in_the_second_phase(loss: JointLoss, batch: tuple[Tensor, Tensor]) -> None:
    before = {name: value.clone() for name, value in loss.clusterer.named_buffers()}
    value, metrics = loss(batch, context(images=600 * N))
    value.backward()
    assert torch.equal(value, metrics["mse"])
    assert all(parameter.grad is None for parameter in loss.clusterer.parameters())
    assert any(parameter.grad is not None for parameter in loss.denoising.unet.parameters())
    # The clusterer stays in training mode: its normalisations use the batch, and go on counting.
    changed = [name for name, buffer in loss.clusterer.named_buffers() if not torch.equal(buffer, before[name])]
    assert any(name.endswith("running_mean") for name in changed)


def test_the_condition_is_the_clusterers_argmax_at_this_step(loss: JointLoss, batch: tuple[Tensor, Tensor]) -> None:
    seen: list[Tensor] = []
    loss.denoising.unet.register_forward_pre_hook(
        lambda _module, _inputs, options: seen.append(options["class_labels"]), with_kwargs=True
    )
    loss(batch, context(images=0))
    assert torch.equal(seen[0], loss.clusterer(batch[0]).argmax(1))


def test_gradients_reach_both_networks_but_not_through_the_condition(
    loss: JointLoss, batch: tuple[Tensor, Tensor]
) -> None:
    value, metrics = loss(batch, context(images=0))
    metrics["mse"].backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in loss.clusterer.parameters())
    value.backward()
    assert all(parameter.grad is not None for parameter in loss.clusterer.parameters())


FILL = torch.tensor([0.1, -0.2, 0.3])


def view(x_B3HW: Tensor, **settings: float) -> Tensor:
    joint = JointConfig(**{"rotation": 0.0, "translation": 0.0, "scaling": 0.0} | settings)
    return affine_view(x_B3HW, context(images=0, rows=len(x_B3HW)), config=joint, fill_3=FILL)


def test_a_view_without_changes_is_the_image() -> None:
    x_B3HW = torch.rand(4, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(view(x_B3HW), x_B3HW, atol=1e-5, rtol=0)


def test_a_view_of_the_fill_is_the_fill() -> None:
    x_B3HW = FILL[:, None, None].expand(4, 3, 16, 16)
    seen = view(x_B3HW, rotation=180.0, translation=0.9, scaling=0.5)
    torch.testing.assert_close(seen, x_B3HW, atol=1e-5, rtol=0)


def test_a_view_is_moved_by_at_most_its_share() -> None:
    """The centre of a spot in 64 images: shifts of both signs, up to 5 % of the side and close to it."""
    side = 101
    x_B3HW = FILL[:, None, None].expand(64, 3, side, side).clone()
    x_B3HW[:, :, 48:53, 48:53] = 1.0
    weight_BHW = view(x_B3HW, translation=0.05)[:, 0] - FILL[0]
    places = torch.arange(side) - (side - 1) / 2
    moved_B = (weight_BHW.sum(1) * places).sum(1) / weight_BHW.sum((1, 2)) / side
    assert moved_B.abs().max() <= 0.05 + 1e-3
    assert moved_B.max() > 0.03
    assert moved_B.min() < -0.03


def test_a_view_is_rotated_by_at_most_its_angle_and_keeps_distances() -> None:
    """The direction of a spot right of the middle."""
    side, radius = 101, 40
    middle = (side - 1) // 2
    x_B3HW = FILL[:, None, None].expand(64, 3, side, side).clone()
    x_B3HW[:, :, middle - 2 : middle + 3, middle + radius - 2 : middle + radius + 3] = 1.0
    weight_BHW = (view(x_B3HW, rotation=5.0)[:, 0] - FILL[0]).clamp_min(0)
    places = torch.arange(side) - middle
    total_B = weight_BHW.sum((1, 2))
    right_B = (weight_BHW.sum(1) * places).sum(1) / total_B
    down_B = (weight_BHW.sum(2) * places).sum(1) / total_B
    angles_B = torch.rad2deg(torch.atan2(down_B, right_B))
    assert angles_B.abs().max() <= 5.05
    assert angles_B.max() > 3
    assert angles_B.min() < -3
    distance_B = (right_B.square() + down_B.square()).sqrt()
    torch.testing.assert_close(distance_B, torch.full_like(distance_B, radius), atol=0.3, rtol=0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("clusters.joint.consistency_weights=[0.04, null]", "needs 3 entries"),
        ("diffusion.condition_dropout=0.1", "no null condition"),
        ("samples.sampler.guidance=1.5", "no null condition"),
        ("latents.stain_views=2", "latents.stain_views=0"),
        ("latents.copies=8", "latents.copies=1"),
        ("clusters.restarts=2", "restarts has no effect with joint"),
        ("clusters.features=codes", "features has no effect with joint"),
        ("clusters.joint=null", "training is needed without joint"),
        ("clusters.training={phases: [{optimizer: adam, lr: 0.1, images: 10}]}", "has no effect with it"),
        ("patches.size=80", "multiple of 8, got 20"),
        ("autoencoder.stem=2", "stem has no effect with architecture: paper"),
        ("autoencoder.channels=6", "must be a multiple of 16"),
        ("autoencoder.restart_below=0.1", "restart_below=0"),
        ("diffusion.whiten=0.9", "whiten=null"),
        ("diffusion.channels=[16, 24, 16]", "multiples of 16"),
        ("diffusion.attention=[true, false, true]", "attends at every level"),
        ("diffusion.embedding=scale-shift", "embedding=add"),
    ],
)
def test_settings_without_effect_are_refused(setting: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        config(setting)
    assert message in str(error.value)


def test_betas_need_a_phase_of_adam() -> None:
    only = "diffusion.training.phases=[{optimizer: adadelta, lr: 0.003, images: 10}]"
    weights = "clusters.joint.consistency_weights=[0.04]"
    assert config(only, weights).diffusion.training.betas == (0.9, 0.999)
    with pytest.raises(UserError, match="betas has no effect"):
        config(only, weights, "diffusion.training.betas=[0.5, 0.999]")


def test_the_discriminator_joins_at_step_1000() -> None:
    """Of 12,500 steps of 16 images."""
    auto = config().autoencoder
    images = auto.training.images(n=10_000)
    assert math.ceil(auto.adversarial.start * images) == 1000 * 16
    assert np.isclose(images / 16, 12_500)
