"""The VQ-GAN (Esser et al. 2021): encoder and decoder of diffusers' blocks around our quantizer.

Images are float -1..1, (N, 3, H, W); latents (N, C, H / f, W / f), before quantisation unless a name says otherwise.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom.autoencoder.quantizer import Quantized, Quantizer
from histoloom.config import AutoencoderConfig
from histoloom.store import read_json, replacing, write_json

NORM_GROUPS = 32
SMOOTHING_CHANNELS = 16


class Autoencoder(nn.Module):
    """Encoder, quantizer and decoder."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        widths = tuple(config.channels * multiplier for multiplier in config.multipliers)
        groups = math.gcd(NORM_GROUPS, *widths)
        folded = 3 * config.stem**2
        self.encoder = Encoder(
            in_channels=folded,
            out_channels=config.code_dim,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=config.blocks,
            norm_num_groups=groups,
            act_fn="silu",
            double_z=False,
            mid_block_add_attention=config.attention,
        )
        self.decoder = Decoder(
            in_channels=config.code_dim,
            out_channels=folded if config.stem == 1 else SMOOTHING_CHANNELS * config.stem**2,
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=config.blocks,
            norm_num_groups=groups,
            act_fn="silu",
            mid_block_add_attention=config.attention,
        )
        self.smoothing = nn.Identity() if config.stem == 1 else _smoothing()
        self.quantizer = Quantizer(
            config.codes, dim=config.code_dim, decay=config.codebook_decay, restart_below=config.restart_below
        )

    def encode(self, x_NCHW: Tensor) -> Tensor:
        """Images to latents before quantisation."""
        return self.encoder(F.pixel_unshuffle(x_NCHW, self.config.stem))

    def quantize(self, z_NCHW: Tensor) -> Quantized:
        """The nearest codes."""
        return self.quantizer(z_NCHW)

    def decode(self, z_NCHW: Tensor) -> Tensor:
        """Latents before quantisation to images; quantises first (not clipped to -1..1)."""
        return self.decode_codes(self.quantizer.lookup(self.quantize(z_NCHW).indices_NHW))

    def decode_codes(self, q_NCHW: Tensor) -> Tensor:
        """Quantised latents to images."""
        return self.smoothing(F.pixel_shuffle(self.decoder(q_NCHW), self.config.stem))

    @property
    def last_layer(self) -> Tensor:
        """The weights whose gradients balance the adversarial loss (Esser et al. 2021, equation 7)."""
        last = self.smoothing[-1] if isinstance(self.smoothing, nn.Sequential) else self.decoder.conv_out
        assert isinstance(last, nn.Conv2d), "the decoder ends with a convolution"
        return last.weight

    def save(self, folder: Path) -> None:
        """Write ``autoencoder.safetensors`` and ``autoencoder.json``."""
        with replacing(folder / "autoencoder.safetensors") as temporary:
            save_file({name: value.contiguous() for name, value in self.state_dict().items()}, temporary)
        write_json(folder / "autoencoder.json", self.config.model_dump(mode="json"))

    @staticmethod
    def load(folder: Path) -> Autoencoder:
        """Read what ``save`` wrote; in evaluation mode, on the CPU."""
        model = Autoencoder(AutoencoderConfig.model_validate(read_json(folder / "autoencoder.json")))
        model.load_state_dict(load_file(folder / "autoencoder.safetensors"))
        return model.eval().requires_grad_(False)


def _smoothing() -> nn.Sequential:
    """Convolutions at full resolution: unfolded pixels alone show the grid that they were folded in."""
    return nn.Sequential(
        nn.Conv2d(SMOOTHING_CHANNELS, SMOOTHING_CHANNELS, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(SMOOTHING_CHANNELS, 3, 3, padding=1),
    )


def to_float(images_NHWC: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) in 0..255 to float (N, 3, H, W) in -1..1."""
    return images_NHWC.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_uint8(x_NCHW: Tensor) -> Tensor:
    """Float (N, 3, H, W), clipped to -1..1, to uint8 (N, H, W, 3) in 0..255."""
    return x_NCHW.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
