"""The networks of the VQ-GAN (Esser et al. 2021): the autoencoder, of diffusers' blocks, and its patch discriminator.

Without a codebook (``codes: 0``) the autoencoder is a variational one (Kingma and Welling 2014), and its latents are
the means of their distributions. A ready autoencoder of diffusers can stand in its place (``diffusers_model``).

Images are float -1..1, (N, 3, H, W); latents (N, C, H / f, W / f), before quantisation unless a name says otherwise.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.unets.unet_2d_blocks import UpDecoderBlock2D
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from histoloom import paper
from histoloom.autoencoder.diffusers_model import (
    DiffusersModel,
    PretrainedDecoder,
    PretrainedEncoder,
    codebook_of,
    load_model,
    model_of,
)
from histoloom.autoencoder.quantizer import Quantized, Quantizer
from histoloom.config import DISCRIMINATOR_GROUPS, AdversarialConfig, AutoencoderConfig
from histoloom.errors import UserError
from histoloom.run.directory import read_json, write_bytes, write_json

HEAD_CHANNELS = {4: 24, 2: 12}
"""channels after unfolding by two: at half of the image's resolution, and at all of it"""

HEAD_BLOCK_CHANNELS = {4: 48, 2: 24}
"""channels of the head's residual blocks at these resolutions"""

HEAD_GROUPS = 8
"""groups of their normalisations"""

METADATA = "diffusers"
"""key in the metadata of ``autoencoder.safetensors``: diffusers' configuration of a ready autoencoder"""


class Autoencoder(nn.Module):
    """Encoder, quantizer and decoder; ``quantizer`` is None where there is no codebook.

    With ``stem`` above 1, squares of pixels are folded into channels before the encoder and unfolded after the decoder.
    """

    encoder: nn.Module
    decoder: nn.Module
    quantizer: Quantizer | None

    def __init__(self, config: AutoencoderConfig, *, pretrained: DiffusersModel | None = None) -> None:
        """``pretrained``: the ready model, where ``config`` names one whose folder may be gone by now."""
        super().__init__()
        self.config = config
        self.pretrained = pretrained or (model_of(config) if config.pretrained else None)
        if self.pretrained is not None:
            model = self.pretrained.build()
            self.encoder, self.decoder = PretrainedEncoder(model), PretrainedDecoder(model)
        elif config.architecture == "paper":
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
                double_z=config.codes == 0,  # means and logarithms of variances
                mid_block_add_attention=config.attention,
            )
            self.decoder = Decoder(
                in_channels=config.code_dim,
                out_channels=decoder_channels(config),
                up_block_types=("UpDecoderBlock2D",) * levels,
                block_out_channels=config.widths,
                layers_per_block=config.blocks,
                norm_num_groups=config.groups,
                act_fn="silu",
                mid_block_add_attention=config.attention,
            )
        last = self.decoder.conv_out if isinstance(self.decoder, Decoder | paper.Decoder) else None
        if config.head_blocks > 0:
            self.head = upsampling_head(config.stem, blocks=config.head_blocks)
        else:
            self.head = nn.Sequential() if last is None else unfolding_head(config.stem, last=last)
        self.quantizer = (
            Quantizer(
                config.codes,
                dim=config.code_dim,
                decay=config.codebook_decay,
                restart_below=config.restart_below,
                gradient=config.gradient,
            )
            if config.codes
            else None
        )

    @staticmethod
    def from_diffusers(config: AutoencoderConfig) -> Autoencoder:
        """The ready autoencoder that ``config`` names, with its weights; ``UserError`` where they do not fit."""
        assert config.pretrained is not None, "the settings name one"
        folder = Path(config.pretrained)
        autoencoder, model = Autoencoder(config), load_model(folder)
        autoencoder.encoder, autoencoder.decoder = PretrainedEncoder(model), PretrainedDecoder(model)
        codebook_KC = codebook_of(model)
        if autoencoder.quantizer is not None and codebook_KC is not None:
            autoencoder.quantizer.codebook_KC.data.copy_(codebook_KC)
        return autoencoder.eval().requires_grad_(False)

    def encode(self, x_NCHW: Tensor) -> Tensor:
        """Images to latents before quantisation; the means of their distributions where there is no codebook."""
        return self.moments(x_NCHW)[0]

    def moments(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Latents, and the logarithms of their variances, clipped to -30..20; None where latents have none."""
        h_NChw: Tensor = self.encoder(F.pixel_unshuffle(self.to_pixel_range(x_NCHW), self.config.stem))
        if self.quantizer is not None or self.pretrained is not None:
            return h_NChw, None
        mean_NChw, logvar_NChw = h_NChw.chunk(2, dim=1)
        return mean_NChw, logvar_NChw.clamp(-30, 20)

    def latents(self, x_NCHW: Tensor) -> Tensor:
        """Images to the latents of the later stages: before quantisation, or after where the settings say so."""
        z_NCHW = self.encode(x_NCHW).float()
        return self.codes(z_NCHW) if self.config.quantize_latents else z_NCHW

    def quantize(self, z_NCHW: Tensor) -> Quantized:
        """The nearest codes; only where there is a codebook."""
        assert self.quantizer is not None, "an autoencoder with a codebook"
        quantized: Quantized = self.quantizer(z_NCHW)
        return quantized

    def codes(self, z_NCHW: Tensor) -> Tensor:
        """Latents after quantisation; as they are where there is no codebook."""
        return z_NCHW if self.quantizer is None else self.quantizer.lookup(self.quantize(z_NCHW).indices_NHW)

    def decode(self, z_NCHW: Tensor) -> Tensor:
        """Latents of the later stages to images, not clipped to -1..1; quantises first where the settings say so."""
        return self.decode_codes(self.decoded_latents(z_NCHW))

    def decoded_latents(self, z_NCHW: Tensor) -> Tensor:
        """What the decoder is given for latents of the later stages: these, or their nearest codes."""
        return self.codes(z_NCHW) if self.config.quantize_decoded else z_NCHW

    def decode_codes(self, q_NCHW: Tensor) -> Tensor:
        """Latents to images, by the decoder alone."""
        y_NCHW: Tensor = self.head(self.decoder(q_NCHW))
        return 2 * y_NCHW - 1 if self.config.pixel_range == "unit" else y_NCHW

    def reconstruct(self, x_NCHW: Tensor) -> Tensor:
        """Images through the whole autoencoder, by the latents that its decoder learned from.

        These are codes where there is a codebook, but for a decoder that was trained alone on what it decodes.
        """
        z_NCHW = self.encode(x_NCHW)
        return self.decode(z_NCHW) if self.config.trained == "decoder" else self.decode_codes(self.codes(z_NCHW))

    def to_pixel_range(self, x_NCHW: Tensor) -> Tensor:
        """Images in the range of values that the networks and the losses see: -1..1, or 0..1."""
        return (x_NCHW + 1) / 2 if self.config.pixel_range == "unit" else x_NCHW

    @property
    def last_layer(self) -> Tensor:
        """The weights whose gradients balance the adversarial loss (Esser et al. 2021, equation 7)."""
        last = self.head[-1] if len(self.head) else getattr(self.decoder, "conv_out", None)
        assert isinstance(last, nn.Conv2d), "the decoder ends with a convolution"
        return last.weight

    @property
    def before_last_layer(self) -> tuple[nn.Module, ...]:
        """Parts of the decoder that end before ``last_layer``, whose gradients do not pass through them."""
        if len(self.head):
            return (self.decoder,)
        if isinstance(self.decoder, paper.Decoder):
            return (self.decoder.layers,)
        assert isinstance(self.decoder, Decoder), "a ready autoencoder is not trained"
        assert self.decoder.mid_block is not None, "diffusers' decoder has one"
        return (self.decoder.mid_block, *self.decoder.up_blocks)

    def save(self, folder: Path) -> None:
        """Write ``autoencoder.safetensors`` and ``autoencoder.json``."""
        metadata = None if self.pretrained is None else {METADATA: self.pretrained.text}
        weights = save({name: value.contiguous() for name, value in self.state_dict().items()}, metadata)
        write_bytes(folder / "autoencoder.safetensors", weights)
        values = self.config.model_dump(mode="json")
        if self.config.pretrained is not None:
            values["pretrained"] = Path(self.config.pretrained).name  # where it lay is nobody's business
        write_json(folder / "autoencoder.json", values)

    @staticmethod
    def load(folder: Path) -> Autoencoder:
        """Read what ``save`` of this or an earlier version wrote; in evaluation mode, on the CPU."""
        for name in ("autoencoder.json", "autoencoder.safetensors"):
            if not (folder / name).is_file():
                raise UserError(f"{folder} has no {name}; restore it from a copy, or train the autoencoder again")
        config = AutoencoderConfig.model_validate(read_json(folder / "autoencoder.json"))
        weights, pretrained = folder / "autoencoder.safetensors", None
        if config.pretrained:
            with safe_open(weights, framework="pt") as file:
                text = (file.metadata() or {}).get(METADATA, "null")
            pretrained = DiffusersModel.of(json.loads(text), source=str(weights))
        model = Autoencoder(config, pretrained=pretrained)
        model.load_state_dict(load_file(weights))
        return model.eval().requires_grad_(False)


def decoder_channels(config: AutoencoderConfig) -> int:
    """Channels that the decoder gives to the head, or to the image where there is no head."""
    if config.stem == 1:
        return 3
    return HEAD_BLOCK_CHANNELS[config.stem] if config.head_blocks else 4 * HEAD_CHANNELS[config.stem]


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


def upsampling_head(stem: int, *, blocks: int) -> nn.Sequential:
    """The layers that take the decoder's map to pixels: doubled by repetition, then ``blocks`` residual blocks.

    Repetition gives the four subpixels of a position the same values in training too, which unfolding only starts with:
    unfolding before the same blocks left a period of two pixels (docs/explanation/log/2026-11-28-decoder-head.md).
    """
    layers: list[nn.Module] = []
    scale, width = stem, HEAD_BLOCK_CHANNELS[stem]
    while scale > 1:
        block = UpDecoderBlock2D(
            width, HEAD_BLOCK_CHANNELS[scale], num_layers=blocks, resnet_groups=HEAD_GROUPS, add_upsample=False
        )
        layers += [nn.Upsample(scale_factor=2, mode="nearest"), block]
        scale, width = scale // 2, HEAD_BLOCK_CHANNELS[scale]
    return nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))


class Discriminator(nn.Module):
    """The patch discriminator (Isola et al. 2017): scores overlapping regions of an image; larger is more real.

    Images (N, 3, H, W) in -1..1 to scores (N, 1, h, w). Group instead of batch normalisation, so that a score does not
    depend on the rest of the batch. With ``pixels`` a convolution at the image's resolution comes first.
    """

    def __init__(self, config: AdversarialConfig) -> None:
        super().__init__()
        before = config.widths[0]
        if config.pixels:
            first, others = nn.Conv2d(3, before, 3, padding=1), config.widths
        else:
            first, others = nn.Conv2d(3, before, 4, stride=2, padding=1), config.widths[1:]
        blocks: list[nn.Module] = [first, nn.LeakyReLU(0.2)]
        for number, width in enumerate(others, start=1):
            blocks += [
                nn.Conv2d(before, width, 4, stride=2 if number < len(others) else 1, padding=1, bias=False),
                nn.GroupNorm(math.gcd(DISCRIMINATOR_GROUPS, width), width),
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
