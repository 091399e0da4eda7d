"""The U-Net: every layer of every preset sees step and condition."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from histoloom import paper
from histoloom.config import DiffusionConfig, read_preset
from histoloom.diffusion.model.unet import make_unet, open_diffusers_unet, save_unet

PRESETS = ("cpu", "demo", "modern", "paper", "starter")
LEAST = 0.2


def least_effect(config: DiffusionConfig) -> float:
    """The least change that another step and condition make to a layer, as a share of what it adds to its input."""
    torch.manual_seed(0)
    unet = make_unet(config, shape=(2, 8, 8), conditions=3)
    shares = []
    for layer in unet.modules():
        if isinstance(layer, ResnetBlock2D):
            x, embedding = torch.randn(2, layer.in_channels, 8, 8), torch.randn(2, layer.time_emb_proj.in_features)
            with torch.no_grad():
                output, other = layer(x, embedding), layer(x, embedding.flip(0))
                shortcut = layer.conv_shortcut(x) if layer.conv_shortcut is not None else x
            shares.append(float((output - other).std() / (output - shortcut).std()))
        if isinstance(layer, paper.networks.ResidualLayer):
            assert layer.embed is not None
            x = torch.randn(2, layer.shortcut.in_channels, 8, 8)
            embed = layer.embed[1]
            assert isinstance(embed, nn.Linear)
            embedding = torch.randn(2, embed.in_features)
            with torch.no_grad():
                output, other, shortcut = layer(x, embedding), layer(x, embedding.flip(0)), layer.shortcut(x)
            shares.append(float((output - other).std() / (output - shortcut).std()))
    return min(shares)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_layer_sees_step_and_condition(preset: str) -> None:
    config = DiffusionConfig.model_validate(read_preset(preset)["diffusion"])
    assert least_effect(config) > LEAST


def test_a_group_of_one_channel_forgets_what_was_added() -> None:
    training = {"phases": [{"optimizer": "adamw", "lr": 1e-3, "images": 8}]}
    settings = {"channels": (16,), "attention": (False,), "blocks": 1, "training": training}
    assert math.isclose(least_effect(DiffusionConfig.model_validate(settings)), 0, abs_tol=1e-5)
    for remedy in ({"norm_groups": 4}, {"embedding": "scale-shift"}):
        assert least_effect(DiffusionConfig.model_validate(settings | remedy)) > LEAST


def test_what_is_saved_does_not_say_where_it_was_read(tmp_path: Path) -> None:
    training = {"phases": [{"optimizer": "adamw", "lr": 1e-3, "images": 8}]}
    config = DiffusionConfig.model_validate(
        {"channels": (16,), "attention": (False,), "blocks": 1, "norm_groups": 4, "training": training}
    )
    save_unet(make_unet(config, shape=(2, 8, 8), conditions=3), tmp_path / "unet")
    read = open_diffusers_unet(tmp_path)
    assert str(tmp_path) in str(read.config["_name_or_path"])
    (tmp_path / "again").mkdir()
    save_unet(read, tmp_path / "again" / "unet")
    assert str(tmp_path) not in (tmp_path / "again" / "unet" / "config.json").read_text(encoding="utf-8")
