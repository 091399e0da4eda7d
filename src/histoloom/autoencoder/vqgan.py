"""The VQ-GAN (Esser et al. 2021): encoder and decoder of diffusers' blocks around our quantizer.

Images are float -1..1, (N, 3, H, W); latents (N, C, H / f, W / f), before quantisation unless a name says otherwise.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom.autoencoder.quantizer import Quantized, Quantizer
from histoloom.config import AutoencoderConfig
from histoloom.run.directory import read_json, write_bytes, write_json

HEAD_CHANNELS = {4: 24, 2: 12}
"""width after unfolding by two, at a fourth of the resolution and at half of it"""


class Autoencoder(nn.Module):
    """Encoder, quantizer and decoder."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        widths = tuple(config.channels * multiplier for multiplier in config.multipliers)
        groups = math.gcd(config.norm_groups, *widths)
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
            out_channels=3 if config.stem == 1 else 4 * HEAD_CHANNELS[config.stem],
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=widths,
            layers_per_block=config.blocks,
            norm_num_groups=groups,
            act_fn="silu",
            mid_block_add_attention=config.attention,
        )
        self.head = unfolding_head(config.stem, last=self.decoder.conv_out)
        self.quantizer = Quantizer(
            config.codes,
            dim=config.code_dim,
            decay=config.codebook_decay,
            restart_below=config.restart_below,
            on_sphere=config.code_space == "sphere",
            gradient=config.gradient,
        )

    def encode(self, x_NCHW: Tensor) -> Tensor:
        """Images to latents before quantisation."""
        return self.allowed(self.encoder(F.pixel_unshuffle(x_NCHW, self.config.stem)))

    def allowed(self, z_NCHW: Tensor) -> Tensor:
        """Latents brought to where the codes are: to length 1, where these lie on the sphere."""
        return F.normalize(z_NCHW, dim=1) if self.config.code_space == "sphere" else z_NCHW

    def quantize(self, z_NCHW: Tensor) -> Quantized:
        """The nearest codes."""
        return self.quantizer(z_NCHW)

    def decode(self, z_NCHW: Tensor) -> Tensor:
        """Latents before quantisation to images; quantises first (not clipped to -1..1)."""
        return self.decode_codes(self.quantizer.lookup(self.quantize(z_NCHW).indices_NHW))

    def decode_codes(self, q_NCHW: Tensor) -> Tensor:
        """Quantised latents to images."""
        return self.head(self.decoder(q_NCHW))

    @property
    def last_layer(self) -> Tensor:
        """The weights whose gradients balance the adversarial loss (Esser et al. 2021, equation 7)."""
        last = self.head[-1] if len(self.head) else self.decoder.conv_out
        assert isinstance(last, nn.Conv2d), "the decoder ends with a convolution"
        return last.weight

    def save(self, folder: Path) -> None:
        """Write ``autoencoder.safetensors`` and ``autoencoder.json``."""
        weights = save({name: value.contiguous() for name, value in self.state_dict().items()})
        write_bytes(folder / "autoencoder.safetensors", weights)
        write_json(folder / "autoencoder.json", self.config.model_dump(mode="json"))

    @staticmethod
    def load(folder: Path) -> Autoencoder:
        """Read what ``save`` wrote; in evaluation mode, on the CPU."""
        model = Autoencoder(AutoencoderConfig.model_validate(read_json(folder / "autoencoder.json")))
        model.load_state_dict(load_file(folder / "autoencoder.safetensors"))
        return model.eval().requires_grad_(False)


def unfolding_head(stem: int, *, last: nn.Conv2d) -> nn.Sequential:
    """What unfolds the decoder's ``last`` channels to pixels, by twos, with a convolution after each unfolding.

    One unfolding by four, with nothing behind it, showed its grid in every reconstruction.
    """
    layers: list[nn.Module] = []
    before, scale = last, stem
    while scale > 1:
        wide = HEAD_CHANNELS[scale]
        _alike_subpixels(before)
        after = nn.Conv2d(wide, 3 if scale == 2 else 4 * HEAD_CHANNELS[scale // 2], 3, padding=1)
        layers += [nn.PixelShuffle(2), nn.SiLU(), after]
        before, scale = after, scale // 2
    return nn.Sequential(*layers)


@torch.no_grad()
def _alike_subpixels(layer: nn.Conv2d) -> None:
    """Start with four equal subpixels, so that unfolding starts without a grid (Aitken et al. 2017)."""
    assert layer.bias is not None, "made with a bias"
    layer.weight.copy_(layer.weight[::4].repeat_interleave(4, dim=0))
    layer.bias.copy_(layer.bias[::4].repeat_interleave(4))


def to_float(images_NHWC: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) in 0..255 to float (N, 3, H, W) in -1..1."""
    return images_NHWC.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_uint8(x_NCHW: Tensor) -> Tensor:
    """Float (N, 3, H, W), clipped to -1..1, to uint8 (N, H, W, 3) in 0..255."""
    return x_NCHW.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
