"""Settings either are refused when a run is made, or their networks build and take a step."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from histoloom.autoencoder.losses import VQGANLosses
from histoloom.autoencoder.stage import make_task
from histoloom.clustering.clusterer import Architecture, build
from histoloom.config import Config, make_config, read_preset, with_settings
from histoloom.diffusion.model.unet import make_unet
from histoloom.errors import UserError
from histoloom.evaluation.cluster_classifier import ClusterClassifier
from histoloom.training.loop import StepContext

TINY = (
    "patches.size=32",
    "autoencoder.blocks=1",
    "autoencoder.code_dim=4",
    "autoencoder.codes=8",
    "diffusion.blocks=1",
    "clusters.k=[2, 3]",
)


def config_of(settings: dict[str, object]) -> Config | None:
    """The configuration, or None where it is refused."""
    values = {**read_preset("cpu"), "slides": {"paths": ["/slides"]}}
    try:
        return make_config(with_settings(values, [*TINY, *(f"{key}={value}" for key, value in settings.items())]))
    except UserError:
        return None


def sampled(grid: dict[str, list[object]], *, count: int) -> list[dict[str, object]]:
    """``count`` points of a grid, each time the same ones."""
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return random.Random(0).sample(points, count)


AUTOENCODERS = sampled(
    {
        "patches.size": [8, 16, 24, 32],
        "autoencoder.channels": [1, 3, 12, 16],
        "autoencoder.multipliers": ["[1]", "[1, 3]", "[2, 1]"],
        "autoencoder.norm_groups": [1, 5, 32],
        "autoencoder.attention": ["true", "false"],
        "autoencoder.stem": [1, 2, 4],
        "autoencoder.adversarial.weight": [0, 0.8],
        "autoencoder.adversarial.channels": [1, 3, 4, 6, 8, 12, 20],
        "autoencoder.adversarial.layers": [1, 2, 3, 4],
        "diffusion.channels": ["[8]"],
        "diffusion.attention": ["[false]"],
    },
    count=120,
)
DIFFUSIONS = sampled(
    {
        "patches.size": [8, 16, 24, 32],
        "diffusion.channels": ["[1]", "[7]", "[8, 16]", "[24, 40]", "[33, 66]", "[64, 48]", "[3, 5, 7]"],
        "diffusion.attention": ["[true]", "[false, true]", "[true, false]", "[false, false, true]"],
        "diffusion.norm_groups": [1, 5, 8, 32],
        "diffusion.embedding": ["add", "scale-shift"],
        "diffusion.middle_norm": [False, True],
        "diffusion.condition_dropout": [0, 0.1],
    },
    count=160,
)
CLUSTERERS = sampled(
    {
        "clusters.features": ["latents", "pooled", "codes"],
        "clusters.channels": [1, 4, 8, 12, 20, 24],
        "evaluation.cluster_classifier.channels": [4, 8, 12, 16],
        "patches.size": [8, 32],
        "diffusion.channels": ["[8]"],
        "diffusion.attention": ["[false]"],
        "autoencoder.multipliers": ["[1]"],
    },
    count=80,
)


def test_every_autoencoder_takes_a_step_or_is_refused() -> None:
    accepted = [config for settings in AUTOENCODERS if (config := config_of(settings)) is not None]
    assert 10 <= len(accepted) <= len(AUTOENCODERS) - 10
    for config in accepted:
        modules = make_task(config.autoencoder, seed=0, n=8).modules
        losses = VQGANLosses(
            config.autoencoder,
            autoencoder=modules["autoencoder"],  # type: ignore[arg-type]
            discriminator=modules.get("discriminator"),
            perceptual=None,
        )
        size = config.patches.size
        context = StepContext(0, 0, 1.0, torch.device("cpu"), torch.Generator().manual_seed(0), slice(0, 1), 1)
        loss, _ = losses.autoencoder_loss(torch.randint(256, (1, size, size, 3), dtype=torch.uint8), context)
        loss.backward()
        assert torch.isfinite(loss)


def test_every_unet_draws_or_is_refused() -> None:
    accepted = [config for settings in DIFFUSIONS if (config := config_of(settings)) is not None]
    assert 10 <= len(accepted) <= len(DIFFUSIONS) - 10
    for config in accepted:
        side = config.patches.size // config.autoencoder.factor
        unet = make_unet(config.diffusion, shape=(4, side, side), conditions=6)
        x = unet(torch.randn(1, 4, side, side), torch.tensor([3]), class_labels=torch.tensor([1])).sample
        assert x.shape == (1, 4, side, side)
        assert torch.isfinite(x).all()


def test_every_clusterer_and_classifier_takes_patches_or_is_refused() -> None:
    accepted = [config for settings in CLUSTERERS if (config := config_of(settings)) is not None]
    assert 3 <= len(accepted) <= len(CLUSTERERS) - 10
    for config in accepted:
        size, clusters = config.patches.size, config.clusters
        vectors = "latents" not in clusters.kinds
        network = build(Architecture(4, clusters.channels, clusters.k, vectors)).network
        side = size // config.autoencoder.factor
        logits = network(torch.randn(4, 4) if vectors else torch.randn(4, 4, side, side))
        assert {k: tuple(logits_NK.shape) for k, logits_NK in logits.items()} == {k: (4, k) for k in clusters.k}
        images = torch.rand(1, 3, size, size) * 2 - 1
        assert config.evaluation.cluster_classifier is not None
        classifier = ClusterClassifier(config.evaluation.cluster_classifier.channels, clusters=3)
        assert classifier(images).shape == (1, 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["patches.size=16", "autoencoder.perceptual=lpips"], "at least 32 for autoencoder.perceptual: lpips, got 16"),
        (["patches.size=16", "autoencoder.adversarial.weight=1"], "at least 24 for a discriminator of 3 layers"),
        (["patches.size=16", "clusters.trunk=squeeze"], "at least 32 for clusters.trunk: squeeze, got 16"),
    ],
)
def test_what_a_network_cannot_take_is_named_with_what_is_allowed(settings: list[str], words: str) -> None:
    values = {**read_preset("cpu"), "slides": {"paths": ["/slides"]}}
    small = ["diffusion.channels=[8]", "diffusion.attention=[false]"]
    with pytest.raises(UserError, match=words):
        make_config(with_settings(values, [*small, *settings]))
