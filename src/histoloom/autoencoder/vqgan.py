"""The networks of the VQ-GAN (Esser et al. 2021): the autoencoder, of diffusers' blocks, and its patch discriminator.

Images are float -1..1, (N, 3, H, W); latents (N, C, H / f, W / f), before quantisation unless a name says otherwise.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom import paper
from histoloom.autoencoder.quantizer import Quantized, Quantizer
from histoloom.config import DISCRIMINATOR_GROUPS, AdversarialConfig, AutoencoderConfig
from histoloom.errors import UserError
from histoloom.run.directory import read_json, write_bytes, write_json

HEAD_CHANNELS = {4: 24, 2: 12}
"""Channels after unfolding by two: at a fourth of the resolution, and at half of it."""


class Autoencoder(nn.Module):
    """Encoder, quantizer and decoder.

    With ``stem`` above 1, squares of pixels are folded into channels before the encoder and unfolded after the decoder.
    """

    encoder: Encoder | paper.Encoder
    decoder: Decoder | paper.Decoder

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        if config.architecture == "paper":
            self.encoder = paper.Encoder(config)
            self.decoder = paper.Decoder(config)
        else:
            levels = len(config.widths)
            self.encoder = Encoder(
                in_channels=3 * config.stem**2,
                out_channels=config.code_dim,
                down_block_types=("DownEncoderBlock2D",) * levels,
                block_out_channels=config.widths,
                layers_per_block=config.blocks,
                norm_num_groups=config.groups,
                act_fn="silu",
                double_z=False,
                mid_block_add_attention=config.attention,
            )
            self.decoder = Decoder(
                in_channels=config.code_dim,
                out_channels=3 if config.stem == 1 else 4 * HEAD_CHANNELS[config.stem],
                up_block_types=("UpDecoderBlock2D",) * levels,
                block_out_channels=config.widths,
                layers_per_block=config.blocks,
                norm_num_groups=config.groups,
                act_fn="silu",
                mid_block_add_attention=config.attention,
            )
        self.head = unfolding_head(config.stem, last=self.decoder.conv_out)
        self.quantizer = Quantizer(
            config.codes,
            dim=config.code_dim,
            decay=config.codebook_decay,
            restart_below=config.restart_below,
            gradient=config.gradient,
        )

    def encode(self, x_NCHW: Tensor) -> Tensor:
        """Images to latents before quantisation."""
        x_NCHW = self.to_pixel_range(x_NCHW)
        return self.encoder(F.pixel_unshuffle(x_NCHW, self.config.stem))

    def latents(self, x_NCHW: Tensor) -> Tensor:
        """Images to the latents of the later stages: before quantisation, or after where the settings say so."""
        z_NCHW = self.encode(x_NCHW).float()
        return self.quantizer.lookup(self.quantize(z_NCHW).indices_NHW) if self.config.quantize_latents else z_NCHW

    def quantize(self, z_NCHW: Tensor) -> Quantized:
        """The nearest codes."""
        return self.quantizer(z_NCHW)

    def decode(self, z_NCHW: Tensor) -> Tensor:
        """Latents of the later stages to images, not clipped to -1..1; quantises first where the settings say so."""
        return self.decode_codes(self.decoded_latents(z_NCHW))

    def decoded_latents(self, z_NCHW: Tensor) -> Tensor:
        """What the decoder is given for latents of the later stages: these, or their nearest codes."""
        return self.quantizer.lookup(self.quantize(z_NCHW).indices_NHW) if self.config.quantize_decoded else z_NCHW

    def decode_codes(self, q_NCHW: Tensor) -> Tensor:
        """Latents to images, by the decoder alone."""
        y_NCHW: Tensor = self.head(self.decoder(q_NCHW))
        return 2 * y_NCHW - 1 if self.config.pixel_range == "unit" else y_NCHW

    def reconstruct(self, x_NCHW: Tensor) -> Tensor:
        """Images through the whole autoencoder, by the latents that its decoder learned from.

        These are codes, but for a decoder that was trained alone on what it decodes.
        """
        z_NCHW = self.encode(x_NCHW)
        if self.config.trained == "decoder":
            return self.decode(z_NCHW)
        return self.decode_codes(self.quantizer.lookup(self.quantize(z_NCHW).indices_NHW))

    def to_pixel_range(self, x_NCHW: Tensor) -> Tensor:
        """Images in the range of values that the networks and the losses see: -1..1, or 0..1."""
        return (x_NCHW + 1) / 2 if self.config.pixel_range == "unit" else x_NCHW

    @property
    def last_layer(self) -> Tensor:
        """The weights whose gradients balance the adversarial loss (Esser et al. 2021, equation 7)."""
        last = self.head[-1] if len(self.head) else self.decoder.conv_out
        assert isinstance(last, nn.Conv2d), "the decoder ends with a convolution"
        return last.weight

    @property
    def before_last_layer(self) -> tuple[nn.Module, ...]:
        """Parts of the decoder that end before ``last_layer``, whose gradients do not pass through them."""
        if len(self.head):
            return (self.decoder,)
        if isinstance(self.decoder, paper.Decoder):
            return (self.decoder.layers,)
        assert self.decoder.mid_block is not None, "diffusers' decoder has one"
        return (self.decoder.mid_block, *self.decoder.up_blocks)

    def save(self, folder: Path) -> None:
        """Write ``autoencoder.safetensors`` and ``autoencoder.json``."""
        weights = save({name: value.contiguous() for name, value in self.state_dict().items()})
        write_bytes(folder / "autoencoder.safetensors", weights)
        write_json(folder / "autoencoder.json", self.config.model_dump(mode="json"))

    @staticmethod
    def load(folder: Path) -> Autoencoder:
        """Read what ``save`` of this or an earlier version wrote; in evaluation mode, on the CPU."""
        for name in ("autoencoder.json", "autoencoder.safetensors"):
            if not (folder / name).is_file():
                raise UserError(f"{folder} has no {name}; restore it from a copy, or train the autoencoder again")
        model = Autoencoder(AutoencoderConfig.model_validate(read_json(folder / "autoencoder.json")))
        model.load_state_dict(load_file(folder / "autoencoder.safetensors"))
        return model.eval().requires_grad_(False)


def unfolding_head(stem: int, *, last: nn.Conv2d) -> nn.Sequential:
    """The layers that unfold the channels of the decoder's ``last`` convolution to pixels.

    They unfold by two at a time, with a convolution after each: unfolding by four at once, with nothing behind it,
    leaves a visible grid in every reconstruction. Each unfolding starts with four equal subpixels, so that it adds no
    grid of its own (Aitken et al. 2017).
    """
    layers: list[nn.Module] = []
    before, scale = last, stem
    while scale > 1:
        assert before.bias is not None, "made with a bias"
        with torch.no_grad():
            before.weight.copy_(before.weight[::4].repeat_interleave(4, dim=0))
            before.bias.copy_(before.bias[::4].repeat_interleave(4))

        channels = 3 if scale == 2 else 4 * HEAD_CHANNELS[scale // 2]
        after = nn.Conv2d(HEAD_CHANNELS[scale], channels, 3, padding=1)
        layers += [nn.PixelShuffle(2), nn.SiLU(), after]
        before, scale = after, scale // 2
    return nn.Sequential(*layers)


class Discriminator(nn.Module):
    """The patch discriminator (Isola et al. 2017): scores overlapping regions of an image; larger is more real.

    Images (N, 3, H, W) in -1..1 to scores (N, 1, h, w). Group instead of batch normalisation, so that a score does not
    depend on the rest of the batch.
    """

    def __init__(self, config: AdversarialConfig) -> None:
        super().__init__()
        first, *others = config.widths
        blocks: list[nn.Module] = [nn.Conv2d(3, first, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        before = first
        for layer, width in enumerate(others, start=1):
            blocks += [
                nn.Conv2d(before, width, 4, stride=2 if layer < config.layers else 1, padding=1, bias=False),
                nn.GroupNorm(min(DISCRIMINATOR_GROUPS, width), width),
                nn.LeakyReLU(0.2),
            ]
            before = width
        self.layers = nn.Sequential(*blocks, nn.Conv2d(before, 1, 4, padding=1))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.layers(x_NCHW)


def to_float(images_NHWC: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) in 0..255 to float (N, 3, H, W) in -1..1."""
    return images_NHWC.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_uint8(x_NCHW: Tensor) -> Tensor:
    """Float (N, 3, H, W), clipped to -1..1, to uint8 (N, H, W, 3) in 0..255."""
    return x_NCHW.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
