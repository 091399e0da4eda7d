"""The paper's networks: numbers of parameters as published, and shapes at every level."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from histoloom import paper
from histoloom.autoencoder.stage import make_task
from histoloom.autoencoder.vqgan import Autoencoder
from histoloom.clustering.clusterer import Architecture, build
from histoloom.config import Config, make_config, read_preset
from histoloom.diffusion.model.unet import SweepUNet, make_unet, open_unet, save_unet
from histoloom.paper.networks import BatchNorm, sinusoids

K = 14


@pytest.fixture(scope="module")
def preset() -> Config:
    return make_config(read_preset("paper") | {"slides": {"paths": ["/slides"]}})


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def outputs(network: nn.Module, *inputs: Tensor, kinds: tuple[type[nn.Module], ...]) -> list[tuple[int, ...]]:
    """Shapes (C, H, W) after each module of these kinds, in the order in which they ran."""
    shapes: list[tuple[int, ...]] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape[1:])))
        for module in network.modules()
        if isinstance(module, kinds)
    ]
    with torch.no_grad():
        network(*inputs)
    for hook in hooks:
        hook.remove()
    return shapes


def test_numbers_of_parameters_are_the_published_ones(preset: Config) -> None:
    task = make_task(preset.autoencoder, seed=0, n=10)
    assert count(task.modules["autoencoder"]) == 2_516_019
    assert count(task.modules["discriminator"]) == 663_360
    assert count(make_unet(preset.diffusion, shape=(16, 32, 32), conditions=K)) == 23_288_336
    clusterer = build(Architecture(16, preset.clusters.channels, (K,), side=32))
    assert count(clusterer) == 586_638


def test_the_vqgan_has_the_published_shapes(preset: Config) -> None:
    autoencoder = Autoencoder(preset.autoencoder)
    x_1CHW = torch.zeros(1, 3, 128, 128)
    kinds = (paper.networks.ResidualLayer, paper.networks.SelfAttention, nn.ConvTranspose2d)
    assert outputs(autoencoder.encoder, x_1CHW, kinds=kinds) == [
        (64, 128, 128),
        (128, 64, 64),
        *[(128, 32, 32)] * 3,
    ]
    assert autoencoder.encode(x_1CHW).shape == (1, 16, 32, 32)
    assert outputs(autoencoder.decoder, torch.zeros(1, 16, 32, 32), kinds=kinds) == [
        *[(128, 32, 32)] * 3,
        (128, 64, 64),
        (64, 64, 64),
        (64, 128, 128),
        (32, 128, 128),
    ]
    assert autoencoder.decode(torch.zeros(1, 16, 32, 32)).shape == (1, 3, 128, 128)


def test_the_discriminator_has_the_published_shapes() -> None:
    shapes = outputs(paper.Discriminator((64, 128, 256)), torch.zeros(2, 3, 128, 128), kinds=(nn.Conv2d,))
    assert shapes == [(64, 64, 64), (128, 32, 32), (256, 16, 16), (1, 15, 15)]


def test_the_clusterer_has_the_published_shapes() -> None:
    network = paper.Clusterer(16, channels=128, k=K, side=32)
    shapes = outputs(network, torch.zeros(2, 16, 32, 32), kinds=(nn.Conv2d,))
    assert shapes == [(128, 16, 16), (128, 8, 8), (128, 4, 4), (K, 1, 1)]


def test_the_unet_has_the_published_shapes(preset: Config) -> None:
    unet = make_unet(preset.diffusion, shape=(16, 32, 32), conditions=K)
    x_1CHW, step, label = torch.zeros(1, 16, 32, 32), torch.tensor([3]), torch.tensor([5])
    shapes = outputs(unet, x_1CHW, step, label, kinds=(paper.networks.SelfAttention,))
    down = [*[(256, 32, 32)] * 2, *[(256, 16, 16)] * 2, *[(256, 8, 8)] * 2]
    up = [*[(256, 8, 8)] * 2, *[(128, 16, 16)] * 2, *[(128, 32, 32)] * 2]
    assert shapes == [*down, *[(256, 8, 8)] * 2, *up]
    assert unet(x_1CHW, step, class_labels=label).sample.shape == x_1CHW.shape


def test_step_and_cluster_change_the_prediction(preset: Config) -> None:
    small = preset.diffusion.model_copy(update={"channels": (32, 32, 32), "norm_groups": 8})
    torch.manual_seed(0)
    unet = make_unet(small, shape=(4, 8, 8), conditions=3)
    x_2CHW = torch.randn(1, 4, 8, 8).expand(2, -1, -1, -1)
    same = unet(x_2CHW, torch.tensor([3, 3]), class_labels=torch.tensor([1, 1])).sample
    torch.testing.assert_close(same[0], same[1])
    by_step = unet(x_2CHW, torch.tensor([3, 700]), class_labels=torch.tensor([1, 1])).sample
    by_cluster = unet(x_2CHW, torch.tensor([3, 3]), class_labels=torch.tensor([1, 2])).sample
    assert (by_step[0] - by_step[1]).abs().max() > 1e-4
    assert (by_cluster[0] - by_cluster[1]).abs().max() > 1e-4


def test_sinusoids_are_sines_then_cosines() -> None:
    embedding_28 = sinusoids(torch.tensor([0, 2]), length=8)
    assert embedding_28[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    wanted = [2 / 10_000 ** (i / 4) for i in range(4)]
    torch.testing.assert_close(embedding_28[1, :4], torch.tensor(wanted).sin())
    torch.testing.assert_close(embedding_28[1, 4:], torch.tensor(wanted).cos())


def test_batch_norm_is_that_of_torch_on_one_process() -> None:
    torch.manual_seed(0)
    ours, reference = BatchNorm(3), nn.BatchNorm2d(3)
    for _ in range(3):
        x_NCHW = torch.randn(4, 3, 5, 5) * 2 + 1
        assert torch.equal(ours(x_NCHW), reference(x_NCHW))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), reference.buffers(), strict=True))


def test_a_sweep_asks_the_network_of_each_k(preset: Config, tmp_path: Path) -> None:
    small = preset.diffusion.model_copy(update={"channels": (32, 32, 32), "norm_groups": 8})
    torch.manual_seed(0)
    networks = {k: make_unet(small, shape=(4, 8, 8), conditions=k).eval() for k in (2, 3)}
    for k, network in networks.items():
        save_unet(network, tmp_path / f"unet-k{k}")
    sweep = open_unet(tmp_path)
    assert isinstance(sweep, SweepUNet)
    assert sweep.conditions.ks == (2, 3)
    x_3CHW, step = torch.randn(3, 4, 8, 8), torch.tensor(7)
    with torch.no_grad():
        mixed = sweep(x_3CHW, step, class_labels=torch.tensor([1, 2, 4])).sample
        of_2 = networks[2](x_3CHW, step, class_labels=torch.tensor([1, 0, 0])).sample
        of_3 = networks[3](x_3CHW, step, class_labels=torch.tensor([0, 0, 2])).sample
    assert torch.equal(mixed[0], of_2[0])
    assert torch.equal(mixed[1:], of_3[1:])
