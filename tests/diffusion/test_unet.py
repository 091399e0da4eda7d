"""The U-Net: every layer of every preset sees step and condition."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention
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


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "paper"])  # its attention has a norm
def test_every_attention_compares_what_is_normalised(preset: str) -> None:
    """Else what it compares grows with the features, which grow in a long training, until its gradients overflow."""
    config = DiffusionConfig.model_validate(read_preset(preset)["diffusion"])
    assert min(deviations_at_attention(config)) > 0.5
    assert max(deviations_at_attention(config)) < 2
    without = config.model_copy(update={"embedding": "scale-shift", "middle_norm": False})
    assert max(deviations_at_attention(without)) > 10


@torch.no_grad()
def deviations_at_attention(config: DiffusionConfig) -> list[float]:
    """The standard deviation of what each self-attention compares, in a network whose features are large."""
    torch.manual_seed(0)
    unet = make_unet(config, shape=(2, 16, 16), conditions=3)
    unet.get_submodule("conv_in").get_parameter("weight").mul_(1000)
    seen: list[float] = []
    for layer in unet.modules():
        if isinstance(layer, Attention):
            layer.to_q.register_forward_pre_hook(lambda _layer, inputs: seen.append(float(inputs[0].std())))
    unet(torch.randn(2, 2, 16, 16), torch.tensor([3, 7]), class_labels=torch.tensor([0, 1]))
    return seen


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
