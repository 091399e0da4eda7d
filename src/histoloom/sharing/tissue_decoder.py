"""The decoder of a Histoloom autoencoder, built from diffusers' blocks alone, or that of a ready model of diffusers.

It quantises, where there is a codebook and the settings say so, then decodes.

Shapes: N images, C channels, h x w latent positions, K codes; images are float, about -1..1, (N, 3, H, W).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.unets.unet_2d_blocks import UpDecoderBlock2D
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

NORM_GROUPS = 32
HEAD_CHANNELS = {4: 24, 2: 12}
HEAD_BLOCK_CHANNELS = {4: 48, 2: 24}
HEAD_GROUPS = 8


class TissueDecoder(nn.Module):
    """Built from the values of ``autoencoder.json``, and from diffusers' configuration of a ready model."""

    codebook_KC: Tensor

    def __init__(self, values: Mapping[str, Any], *, ready: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.quantizes = values["codes"] > 0 and values.get("quantize_decoded", True)
        self.unit_range = values.get("pixel_range", "signed") == "unit"
        self.register_buffer("codebook_KC", torch.zeros(values["codes"], values["code_dim"]))
        if ready is not None:
            model = getattr(diffusers, ready["_class_name"]).from_config(ready)
            projection = getattr(model, "post_quant_conv", None) or nn.Identity()
            self.decoder = nn.ModuleDict({"projection": projection, "decoder": model.decoder})
            self.head = nn.Sequential()
            return
        widths = tuple(values["channels"] * multiplier for multiplier in values["multipliers"])
        stem, blocks = values["stem"], values.get("head_blocks", 0)
        given = HEAD_BLOCK_CHANNELS if blocks else {scale: 4 * channels for scale, channels in HEAD_CHANNELS.items()}
        self.decoder = Decoder(
            in_channels=values["code_dim"],
            out_channels=3 if stem == 1 else given[stem],
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=values["blocks"],
            norm_num_groups=math.gcd(values.get("norm_groups", NORM_GROUPS), *widths),
            act_fn="silu",
            mid_block_add_attention=values["attention"],
        )
        layers: list[nn.Module] = []
        width = given.get(stem, 3)
        while stem > 1:
            if blocks:
                out = HEAD_BLOCK_CHANNELS[stem]
                block = UpDecoderBlock2D(width, out, num_layers=blocks, resnet_groups=HEAD_GROUPS, add_upsample=False)
                layers += [nn.Upsample(scale_factor=2, mode="nearest"), block]
                width = out
            else:
                out = 3 if stem == 2 else given[stem // 2]
                layers += [nn.PixelShuffle(2), nn.SiLU(), nn.Conv2d(HEAD_CHANNELS[stem], out, 3, padding=1)]
            stem //= 2
        if blocks:
            layers += [nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1)]
        self.head = nn.Sequential(*layers)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; diffusers asks every component for it."""
        return next(self.decoder.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return next(self.decoder.parameters()).device

    def forward(self, z_NChw: Tensor) -> Tensor:
        """Images from latents before quantisation."""
        if not self.quantizes:
            return self.decode(z_NChw)
        # The code of least squared distance |c|^2 - 2 x c (+ |x|^2, the same for all codes).
        x_MC = z_NChw.permute(0, 2, 3, 1).reshape(-1, z_NChw.shape[1])
        indices_M = (self.codebook_KC.pow(2).sum(1) - 2 * x_MC @ self.codebook_KC.T).argmin(1)
        q_NhwC = self.codebook_KC[indices_M].view(z_NChw.shape[0], *z_NChw.shape[2:], -1)
        return self.decode(q_NhwC.permute(0, 3, 1, 2))

    def decode(self, q_NChw: Tensor) -> Tensor:
        """Images from codes, or from latents as they are."""
        if isinstance(self.decoder, nn.ModuleDict):
            return self.to_signed(self.decoder["decoder"](self.decoder["projection"](q_NChw)))
        return self.to_signed(self.head(self.decoder(q_NChw)))

    def to_signed(self, images_N3HW: Tensor) -> Tensor:
        """Images in -1..1, from the range of values that the decoder gives."""
        return 2 * images_N3HW - 1 if self.unit_range else images_N3HW

    @classmethod
    def from_pretrained(cls, folder: str, *, torch_dtype: torch.dtype | None = None, **_others: Any) -> TissueDecoder:
        """Read ``autoencoder.json`` and the decoder's part of ``autoencoder.safetensors``, as diffusers asks for it."""
        values = json.loads((Path(folder) / "autoencoder.json").read_text(encoding="utf-8"))
        file = Path(folder) / "autoencoder.safetensors"
        with safe_open(file, framework="pt") as tensors:
            ready = json.loads((tensors.metadata() or {}).get("diffusers", "null"))
        model, weights = cls(values, ready=ready), load_file(file)
        codebook = {"codebook_KC": weights.get("quantizer.codebook_KC", model.codebook_KC)}
        kept = {name: value for name, value in weights.items() if name.startswith(("decoder.", "head."))}
        model.load_state_dict(kept | codebook)
        return model.to(torch_dtype or torch.float32).eval().requires_grad_(False)
