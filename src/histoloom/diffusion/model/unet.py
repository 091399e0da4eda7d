"""The conditional U-Net: diffusers' ``UNet2DModel``, the condition in its class embedding."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from diffusers import UNet2DModel
from safetensors.torch import save
from torch import Tensor, nn

from histoloom.config import DiffusionConfig
from histoloom.run.directory import write_bytes

HEAD_CHANNELS = 32
CONDITIONS = "class_embedding.weight"
"""the parameter with a vector for each condition"""


def make_unet(config: DiffusionConfig, *, shape: tuple[int, int, int], conditions: int) -> UNet2DModel:
    """A freshly initialised network for latents of ``shape`` (C, h, w); ``conditions`` includes the null."""
    channels, height, width = shape
    down = tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in config.attention)
    up = tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(config.attention))
    groups = math.gcd(config.norm_groups, *config.channels)
    return UNet2DModel(
        sample_size=(height, width),
        in_channels=channels,
        out_channels=channels,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=config.channels,
        layers_per_block=config.blocks,
        attention_head_dim=min(HEAD_CHANNELS, *config.channels),
        norm_num_groups=groups,
        act_fn="silu",
        resnet_time_scale_shift="scale_shift" if config.embedding == "scale-shift" else "default",
        dropout=config.dropout,
        num_class_embeds=conditions,
    )


def open_unet(folder: Path) -> UNet2DModel:
    """The network in ``folder/unet``, in single precision, on the CPU."""
    return UNet2DModel.from_pretrained(folder / "unet", local_files_only=True, torch_dtype=torch.float32)


@torch.no_grad()
def begin_from(unet: UNet2DModel, *, source: UNet2DModel, parents: Tensor) -> None:
    """Give ``unet`` the weights of ``source``, and each condition the vector of its parent there, int64 (count,)."""
    weights = source.state_dict()
    weights[CONDITIONS] = weights[CONDITIONS][parents]
    unet.load_state_dict(weights)


def save_unet(unet: nn.Module, folder: Path, *, conditions: int | None = None) -> None:
    """Write ``config.json`` and the weights as ``UNet2DModel.from_pretrained`` reads them.

    ``conditions``: keep the embeddings of so many, the first ones.
    """
    assert isinstance(unet, UNet2DModel), "made by make_unet"
    conditions = conditions or unet.config["num_class_embeds"]
    folder.mkdir(exist_ok=True)
    # A network that was read says from where; whoever gets these files need not know this computer's folders.
    unet.register_to_config(num_class_embeds=conditions, _name_or_path="")
    unet.save_config(folder)
    weights = {name: value.contiguous().cpu() for name, value in unet.state_dict().items()}
    weights[CONDITIONS] = weights[CONDITIONS][:conditions].contiguous()
    write_bytes(folder / "diffusion_pytorch_model.safetensors", save(weights, metadata={"format": "pt"}))
