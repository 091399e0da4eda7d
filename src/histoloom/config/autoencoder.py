"""The sections of the autoencoder and of its latents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from histoloom.config.section import Section
from histoloom.config.training import Momentum, TrainingConfig

ATTENTION_HEADS = 16
"""Heads of each self-attention of the paper's networks."""

DISCRIMINATOR_GROUPS = 16
"""Largest number of groups of the discriminator's normalisations."""


class AdversarialConfig(Section):
    """The patch discriminator of the VQ-GAN (Isola et al. 2017; Esser et al. 2021)."""

    loss: Literal["hinge", "least-squares"] = Field(
        "hinge", description="adversarial loss: hinge (Lim and Ye 2017) or least squares (Mao et al. 2017)"
    )
    weight: float = Field(0.8, ge=0, description="weight of the adversarial loss; 0: no discriminator")
    start: float = Field(0.5, ge=0, lt=1, description="share of the training after which the discriminator joins")
    warmup: float = Field(
        0.1, ge=0, le=1, description="share of the training over which its weight rises linearly; 0: at once"
    )
    max_adaptive: PositiveFloat | None = Field(
        1.0,
        description="upper bound of the adaptive weight (Esser et al. 2021); a bound of 10 harms the images, most "
        "presets take 0.1; null: no adaptive weight",
    )
    channels: PositiveInt = Field(64, description="width of its first layer: a multiple of 8, or 1, 2 or 4")
    layers: PositiveInt = Field(3, description="convolutions that halve the image; more layers see larger regions")
    pixels: bool = Field(
        False, description="a convolution at the image's resolution comes first, so that it sees single pixels"
    )
    lr: PositiveFloat = Field(1e-4, description="learning rate of its Adam optimizer")
    betas: tuple[Momentum, Momentum] = Field(
        (0.9, 0.999),
        description="momenta of its Adam optimizer, each from 0 to below 1; with the default the discriminator falls "
        "behind the autoencoder, so the presets that train one take 0.5 and 0.9",
    )

    @model_validator(mode="after")
    def _norm_groups_divide(self) -> AdversarialConfig:
        if self.weight > 0 and any(width % min(DISCRIMINATOR_GROUPS, width) for width in self.widths[1:]):
            raise ValueError(f"adversarial.channels must be a multiple of 8, or 1, 2 or 4, got {self.channels}")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels after each convolution: doubled by each layer, up to eight times the first."""
        return tuple(self.channels * min(2**layer, 8) for layer in range(self.layers + 1))

    @property
    def min_size(self) -> int:
        """Shortest side of an image that it can score, px: the last convolutions cover more than their padding."""
        return 3 * 2**self.layers


class AutoencoderConfig(Section):
    """The VQ-GAN, which encodes patches as latents and decodes latents to patches (Esser et al. 2021).

    A latent position spans stem * 2 ** (number of multipliers - 1) pixels along each side.
    """

    retired: ClassVar[Mapping[str, object]] = {"code_space": "plane", "equivariance": 0.0}

    pretrained: str | None = Field(
        None,
        description="folder of a ready autoencoder in diffusers' format (AutoencoderKL, AutoencoderTiny, VQModel), "
        "which is used as it is; stem, multipliers, codes and code_dim are then its own; null: train one",
    )
    architecture: Literal["diffusers", "paper"] = Field(
        "diffusers",
        description="networks: of diffusers' blocks, with a discriminator that normalises groups; or those of Rumman "
        "et al. 2025, whose discriminator normalises batches",
    )
    pixel_range: Literal["signed", "unit"] = Field(
        "signed", description="values of a pixel for networks and losses: -1..1 (signed) or 0..1 (unit)"
    )
    stem: Literal[1, 2, 4] = Field(
        1, description="side of the square of pixels that is folded into channels first, px; above 1 saves work"
    )
    channels: PositiveInt = Field(128, description="width of the first level, times its multiplier")
    multipliers: tuple[PositiveInt, ...] = Field(
        (1, 1, 2, 4), min_length=1, description="width of each level, in units of channels; each level halves the map"
    )
    blocks: PositiveInt = Field(2, description="residual blocks per level")
    attention: bool = Field(True, description="use self-attention at the lowest level")
    head_blocks: int = Field(
        0,
        ge=0,
        description="residual blocks of the decoder at each resolution above that of its levels, where stem is 2 or 4; "
        "0: unfolding with a convolution, cheaper, which leaves a faint grid",
    )
    norm_groups: PositiveInt = Field(
        32,
        description="largest number of groups of a group normalisation; with one channel per group the network loses "
        "the mean of each channel, and with it the colour of a patch",
    )
    codes: int = Field(
        128,
        ge=0,
        description="number of vectors in the codebook; 0: no codebook but continuous latents, whose distribution is "
        "drawn to a standard normal one (Kingma and Welling 2014)",
    )
    code_dim: PositiveInt = Field(16, description="length of a codebook vector: the number of latent channels")
    kl_weight: float = Field(
        1e-6,
        ge=0,
        description="weight of the divergence of continuous latents from a standard normal distribution, in nats for "
        "each value of the image (Rombach et al. 2022)",
    )
    gradient: Literal["straight-through", "rotation"] = Field(
        "straight-through",
        description="how gradients pass the quantizer: unchanged (van den Oord et al. 2017), or by the rotation trick "
        "(Fifty et al. 2024)",
    )
    commitment: PositiveFloat = Field(0.25, description="weight of the commitment loss")
    codebook_decay: float | None = Field(
        0.99,
        gt=0,
        lt=1,
        description="decay per step of the codebook's moving averages; null: the codebook is trained by its own loss, "
        "of weight 1 (van den Oord et al. 2017, equation 3)",
    )
    restart_below: float = Field(
        0.05, ge=0, description="a code used less often than this share of the mean use is restarted; 0: never"
    )
    quantize_latents: bool = Field(
        False, description="give quantised latents to the clusters and to the diffusion model, not continuous ones"
    )
    quantize_decoded: bool = Field(
        True, description="replace each position of a drawn latent by the nearest code before it is decoded"
    )
    trained: Literal["all", "decoder"] = Field(
        "all",
        description="what is trained; decoder: encoder and codebook keep the weights of the generator that the run "
        "begins with (init --from), so that its diffusion model stays valid and only its images change",
    )
    latent_noise: float = Field(
        0.0,
        ge=0,
        description="noise on the latents that the decoder learns from, in units of their deviation: with trained: "
        "decoder, always this much; with continuous latents (codes: 0), up to this much; the decoder then corrects "
        "errors of the diffusion model",
    )
    perceptual: Literal["auto", "lpips", "pyramid", "none"] = Field(
        "lpips",
        description="perceptual loss; auto: lpips where its weights are on this machine and patches have at least 32 "
        "px, else pyramid; init replaces auto by its choice",
    )
    perceptual_trunk: Literal["alex", "squeeze", "vgg"] = Field("vgg", description="ImageNet network behind lpips")
    perceptual_weight: float = Field(1.0, ge=0, description="weight of the perceptual loss; 0 with perceptual: none")
    loss_shift: int = Field(
        0,
        ge=0,
        le=16,
        description="the perceptual loss and the discriminator see the image with so many mirrored rows and columns "
        "about it, px, split between its sides in another way in every step, so that none is always first in their "
        "strides; 0: the image alone",
    )
    l1_weight: float = Field(0.0, ge=0, description="weight of the mean absolute error")
    mse_weight: float = Field(1.0, ge=0, description="weight of the mean squared error")
    adversarial: AdversarialConfig = Field(AdversarialConfig(), description="the discriminator")
    augment: bool = Field(False, description="train on random rotations and flips of the patches")
    training: TrainingConfig = Field(description="how the autoencoder is trained")

    @property
    def factor(self) -> int:
        """Pixels a latent position spans, along one side."""
        return int(self.stem * 2 ** (len(self.multipliers) - 1))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * multiplier for multiplier in self.multipliers)

    @property
    def groups(self) -> int:
        """Groups of each normalisation: norm_groups or less, so that they divide the channels of every level."""
        return math.gcd(self.norm_groups, *self.widths)

    @model_validator(mode="after")
    def _architecture_fits(self) -> AutoencoderConfig:
        if self.architecture == "paper" and self.stem != 1:
            raise ValueError(f"stem has no effect with architecture: paper; leave it out, got {self.stem}")
        if self.head_blocks > 0 and (self.stem == 1 or self.architecture == "paper"):
            raise ValueError(
                "head_blocks has an effect only with stem: 2 or 4 and architecture: diffusers; leave it out"
            )
        if self.architecture == "paper" and self.attention and self.widths[-1] % ATTENTION_HEADS:
            raise ValueError(
                f"the last level's width must be a multiple of {ATTENTION_HEADS} for the attention of architecture: "
                f"paper, got {self.widths[-1]}"
            )
        if self.pretrained and self.trained == "decoder":
            raise ValueError("a ready autoencoder (pretrained) is used as it is; leave out trained: decoder")
        if self.codes == 1:
            raise ValueError("a codebook of one code carries nothing; set codes=0 for none, or more")
        if self.codes == 0 and self.quantize_latents:
            raise ValueError("without a codebook (codes=0) there is nothing to quantise; set quantize_latents=false")
        if self.codes == 0 and self.architecture == "paper":
            raise ValueError("architecture: paper needs a codebook; set codes, or architecture=diffusers")
        if self.codebook_decay is None and self.restart_below > 0:
            raise ValueError("codes are restarted only with moving averages; set restart_below=0, or a codebook_decay")
        return self

    @model_validator(mode="after")
    def _noise_has_an_effect(self) -> AutoencoderConfig:
        if self.latent_noise > 0 and self.trained == "all" and self.codes > 0:
            raise ValueError(
                "latent_noise has an effect only with codes: 0 or with autoencoder.trained: decoder; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _losses_have_weights(self) -> AutoencoderConfig:
        if self.l1_weight == 0 and self.mse_weight == 0:
            raise ValueError("one of l1_weight and mse_weight must be above 0")
        if (self.perceptual == "none") != (self.perceptual_weight == 0):
            raise ValueError("perceptual: none and perceptual_weight: 0 go together")
        return self


class LatentsConfig(Section):
    """How patches are encoded, once, for all later stages."""

    dtype: Literal["float32", "float16"] = Field("float32", description="number format of the stored latents")
    stain_views: int = Field(
        2,
        ge=0,
        description="copies of each patch in other stains that are encoded too; the clusters learn to ignore "
        "the difference",
    )
    stain_jitter: PositiveFloat = Field(
        0.25, description="strength of these stains: standard deviation of the logarithm of each stain's gain"
    )
    copies: Literal[1, 8] = Field(
        1, description="8: also encode the seven other rotations and flips of each patch, for the diffusion model"
    )
