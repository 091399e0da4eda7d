"""The parts of the configuration that say what a training is, and what the autoencoder is; see ``config``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator


class Section(BaseModel):
    """A part of the configuration: immutable, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Phase(Section):
    """A stretch of training with one optimizer."""

    optimizer: Literal["adam", "adamw", "adadelta"]
    lr: PositiveFloat
    epochs: PositiveInt | None = None
    images: PositiveInt | None = Field(None, description="length in images seen, instead of epochs")

    @model_validator(mode="after")
    def _one_length(self) -> Phase:
        if (self.epochs is None) == (self.images is None):
            raise ValueError("give exactly one of epochs and images")
        return self

    def length(self, *, n: int) -> int:
        """The phase's length in images seen, for a data set of ``n`` images."""
        return self.images if self.images is not None else (self.epochs or 0) * n


class TrainingConfig(Section):
    """How a network is trained; shared by all three."""

    batch_size: PositiveInt = Field(16, description="images a step, over all processes")
    phases: tuple[Phase, ...] = Field(min_length=1)
    lr_decay: Literal["none", "cosine"] = Field("none", description="of the last phase")
    warmup_images: int = Field(0, ge=0, description="linear learning-rate warm-up of the first phase")
    grad_clip: PositiveFloat | None = Field(None, description="bound of the gradient's norm")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the weights' moving average a step; 0: none")

    def images(self, *, n: int) -> int:
        """Images seen in the whole training, for a data set of ``n`` images."""
        return sum(phase.length(n=n) for phase in self.phases)


class AdversarialConfig(Section):
    """The patch discriminator (Esser et al. 2021)."""

    weight: float = Field(0.8, ge=0, description="0: no discriminator")
    start: float = Field(0.5, ge=0, lt=1, description="share of the training after which it joins")
    warmup: float = Field(0.1, gt=0, le=1, description="share of the training over which its weight rises")
    max_adaptive: PositiveFloat = Field(10.0, description="bound of the adaptive weight")
    channels: PositiveInt = 64
    layers: PositiveInt = 3
    lr: PositiveFloat = 1e-4


class AutoencoderConfig(Section):
    """VQ-GAN; the factor between pixels and latents is stem * 2 ** (len(multipliers) - 1)."""

    stem: Literal[1, 2, 4] = Field(1, description="pixels folded into channels along each side first; saves work")
    channels: PositiveInt = 128
    multipliers: tuple[PositiveInt, ...] = Field((1, 1, 2, 4), min_length=2)
    blocks: PositiveInt = Field(2, description="residual blocks a level")
    attention: bool = Field(True, description="self-attention at the lowest level")
    codes: int = Field(128, ge=2)
    code_dim: PositiveInt = 16
    commitment: PositiveFloat = 0.25
    codebook_decay: float = Field(0.99, gt=0, lt=1, description="of the codebook's moving averages")
    restart_below: float = Field(
        0.05, ge=0, description="codes used less than this share of the mean use are restarted"
    )
    perceptual: Literal["auto", "lpips", "pyramid", "none"] = Field(
        "lpips", description="auto: lpips where its weights are at hand, else pyramid; settled by init"
    )
    perceptual_trunk: Literal["alex", "squeeze", "vgg"] = "vgg"
    perceptual_weight: float = Field(1.0, ge=0)
    l1_weight: float = Field(0.0, ge=0)
    mse_weight: float = Field(1.0, ge=0)
    adversarial: AdversarialConfig = AdversarialConfig()
    augment: bool = Field(False, description="train on the eight dihedral copies of the patches")
    training: TrainingConfig

    @property
    def factor(self) -> int:
        """Pixels a latent position spans, along one side."""
        return int(self.stem * 2 ** (len(self.multipliers) - 1))

    @model_validator(mode="after")
    def _effective(self) -> AutoencoderConfig:
        if self.l1_weight == 0 and self.mse_weight == 0:
            raise ValueError("one of l1_weight and mse_weight must be above 0")
        if (self.perceptual == "none") != (self.perceptual_weight == 0):
            raise ValueError("perceptual: none and perceptual_weight: 0 go together")
        return self
