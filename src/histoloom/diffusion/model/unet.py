"""The conditional U-Net: diffusers' ``UNet2DModel`` with the condition as its class embedding, or the paper's own.

A run whose clusters and diffusion model are trained together has one network for each k of the sweep.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save
from torch import Tensor, nn

from histoloom import paper
from histoloom.config import DiffusionConfig
from histoloom.diffusion.model.condition_maps import with_condition_maps
from histoloom.diffusion.model.conditions import Conditions
from histoloom.errors import UserError
from histoloom.run.directory import read_json, write_bytes, write_json, write_text

HEAD_CHANNELS = 32
CONDITION_EMBEDDING = "class_embedding.weight"
"""the parameter that holds a vector for each condition, (conditions, channels)"""
WEIGHTS = "diffusion_pytorch_model.safetensors"


def make_unet(config: DiffusionConfig, *, shape: tuple[int, int, int], conditions: int) -> nn.Module:
    """A freshly initialised network for normalised latents of ``shape`` (D, h, w); ``conditions`` counts the null.

    It is called as diffusers' is: ``unet(x_NDhw, steps, class_labels=conditions_N).sample``.
    """
    channels, height, width = shape
    if config.architecture == "paper":
        return paper.UNet(
            channels, widths=config.channels, conditions=conditions, blocks=config.blocks, groups=config.groups
        )
    down = tuple("AttnDownBlock2D" if attend else "DownBlock2D" for attend in config.attention)
    up = tuple("AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(config.attention))
    unet = UNet2DModel(
        sample_size=(height, width),
        in_channels=channels,
        out_channels=channels,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=config.channels,
        layers_per_block=config.blocks,
        attention_head_dim=min(HEAD_CHANNELS, *config.channels),
        norm_num_groups=config.groups,
        # Without a norm of its own, what the middle's attention compares grows without bound over a long training.
        attn_norm_num_groups=config.groups if config.middle_norm else None,
        act_fn="silu",
        resnet_time_scale_shift="scale_shift" if config.embedding == "scale-shift" else "default",
        dropout=config.dropout,
        num_class_embeds=conditions,
    )
    return with_condition_maps(unet)


class SweepUNet(nn.Module):
    """One network for each k of a sweep, behind the condition numbers of the whole sweep."""

    def __init__(self, networks: Mapping[int, nn.Module], *, conditions: Conditions | None = None) -> None:
        """``conditions``: of the whole sweep, where ``networks`` are some of it."""
        super().__init__()
        self.conditions = Conditions(tuple(networks)) if conditions is None else conditions
        self.networks = nn.ModuleDict({str(k): network for k, network in networks.items()})

    def of(self, k: int) -> nn.Module:
        """The network for ``k``."""
        return self.networks[str(k)]

    def only(self, ks: Iterable[int]) -> SweepUNet:
        """The same networks, but only those of ``ks``: for batches that have conditions of no other k."""
        return SweepUNet({k: self.of(k) for k in sorted(set(ks))}, conditions=self.conditions)

    def forward(self, x_NCHW: Tensor, steps: Tensor, class_labels: Tensor) -> paper.UNetOutput:
        """The prediction, (N, C, H, W). Each network sees the whole batch: sums differ between batch sizes."""
        result_NCHW = torch.zeros_like(x_NCHW)
        for k, network in self.networks.items():
            clusters_N = class_labels - self.conditions.offset(int(k))
            own_N = (clusters_N >= 0) & (clusters_N < int(k))
            output_NCHW = network(x_NCHW, steps, class_labels=clusters_N.clamp(0, int(k) - 1)).sample
            result_NCHW = torch.where(own_N[:, None, None, None], output_NCHW, result_NCHW)
        return paper.UNetOutput(result_NCHW)


def open_unet(folder: Path) -> nn.Module:
    """The network in ``folder/unet``, or those in ``folder/unet-kK``, in single precision, on the CPU."""
    if (folder / "unet").is_dir():
        return _open(folder / "unet")
    folders = {int(path.name.removeprefix("unet-k")): path for path in folder.glob("unet-k*")}
    return SweepUNet({k: _open(folders[k]) for k in sorted(folders)})


def _open(folder: Path) -> nn.Module:
    config = read_json(folder / "config.json")
    if config["_class_name"] != paper.UNet.__name__:
        return with_condition_maps(
            UNet2DModel.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
        )
    unet = paper.UNet(**{key: value for key, value in config.items() if key != "_class_name"})
    unet.load_state_dict({name: value.float() for name, value in load_file(folder / WEIGHTS).items()})
    return unet.eval()


def open_diffusers_unet(folder: Path) -> UNet2DModel:
    """The network in ``folder/unet``; ``UserError`` where it is not one of diffusers'."""
    unet = open_unet(folder)
    if not isinstance(unet, UNet2DModel):
        raise UserError(
            f"the networks in {folder} are those of the paper, or one for each k; this works only with one U-Net of "
            "diffusers' (diffusion.architecture=diffusers, without clusters.joint)"
        )
    return unet


@torch.no_grad()
def load_pretrained(unet: nn.Module, *, source: nn.Module, condition_sources: Tensor) -> None:
    """Copy the weights of ``source`` into ``unet``.

    ``condition_sources``: for each condition of ``unet`` the condition of ``source`` whose vector it gets, int64
    (conditions,).
    """
    weights = source.state_dict()
    weights[CONDITION_EMBEDDING] = weights[CONDITION_EMBEDDING][condition_sources]
    unet.load_state_dict(weights)


def save_unet(unet: nn.Module, folder: Path) -> None:
    """Write ``config.json`` and the weights; of diffusers' as ``UNet2DModel.from_pretrained`` reads them."""
    folder.mkdir(exist_ok=True)
    if isinstance(unet, UNet2DModel):
        # A network that was read keeps the path it was read from; whoever gets these files must not see it.
        unet.register_to_config(_name_or_path="")
        text = unet.to_json_string()
        write_text(folder / UNet2DModel.config_name, text.replace(type(unet).__name__, UNet2DModel.__name__))
    else:
        assert isinstance(unet, paper.UNet), "made by make_unet"
        write_json(folder / "config.json", {"_class_name": paper.UNet.__name__, **unet.config})
    weights = {name: value.contiguous().cpu() for name, value in unet.state_dict().items()}
    write_bytes(folder / WEIGHTS, save(weights, metadata={"format": "pt"}))
