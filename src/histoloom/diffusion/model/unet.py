"""The conditional U-Net: diffusers' ``UNet2DModel`` with the condition as its class embedding."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DModel
from safetensors.torch import save
from torch import Tensor, nn

from histoloom.config import DiffusionConfig
from histoloom.run.directory import write_bytes

HEAD_CHANNELS = 32
CONDITION_EMBEDDING = "class_embedding.weight"
"""the parameter that holds a vector for each condition, (conditions, channels)"""


def make_unet(config: DiffusionConfig, *, shape: tuple[int, int, int], conditions: int) -> UNet2DModel:
    """A freshly initialised network for normalised latents of ``shape`` (D, h, w); ``conditions`` counts the null."""
    channels, height, width = shape
    down = tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in config.attention)
    up = tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(config.attention))
    return UNet2DModel(
        sample_size=(height, width),
        in_channels=channels,
        out_channels=channels,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=config.channels,
        layers_per_block=config.blocks,
        attention_head_dim=min(HEAD_CHANNELS, *config.channels),
        norm_num_groups=config.groups,
        act_fn="silu",
        resnet_time_scale_shift="scale_shift" if config.embedding == "scale-shift" else "default",
        dropout=config.dropout,
        num_class_embeds=conditions,
    )


def open_unet(folder: Path) -> UNet2DModel:
    """The network in ``folder/unet``, in single precision, on the CPU."""
    return UNet2DModel.from_pretrained(folder / "unet", local_files_only=True, torch_dtype=torch.float32)


@torch.no_grad()
def load_pretrained(unet: UNet2DModel, *, source: UNet2DModel, condition_sources: Tensor) -> None:
    """Copy the weights of ``source`` into ``unet``.

    ``condition_sources``: for each condition of ``unet`` the condition of ``source`` whose vector it gets, int64
    (conditions,).
    """
    weights = source.state_dict()
    weights[CONDITION_EMBEDDING] = weights[CONDITION_EMBEDDING][condition_sources]
    unet.load_state_dict(weights)


def save_unet(unet: nn.Module, folder: Path) -> None:
    """Write ``config.json`` and the weights as ``UNet2DModel.from_pretrained`` reads them."""
    assert isinstance(unet, UNet2DModel), "made by make_unet"
    folder.mkdir(exist_ok=True)
    # A network that was read keeps the path it was read from; whoever gets these files must not see it.
    unet.register_to_config(_name_or_path="")
    unet.save_config(folder)
    weights = {name: value.contiguous().cpu() for name, value in unet.state_dict().items()}
    write_bytes(folder / "diffusion_pytorch_model.safetensors", save(weights, metadata={"format": "pt"}))
