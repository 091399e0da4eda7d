"""How a network is trained: what other sections are made of."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from histoloom.config.section import Section

WIDEST_AVERAGE = 12**-0.5  # sigma_rel of the plain mean of all weights so far (gamma = 0)


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
    ema_width: float | None = Field(
        None,
        gt=0,
        lt=WIDEST_AVERAGE,
        description="instead of ema: width of a power-function average of the weights, as a share of the training "
        "so far, whatever its length (sigma_rel of Karras et al. 2024); none: off",
    )

    @model_validator(mode="after")
    def _one_average(self) -> TrainingConfig:
        if self.ema > 0 and self.ema_width is not None:
            raise ValueError("ema and ema_width exclude each other: set ema=0, or ema_width=null")
        return self

    @property
    def averages(self) -> bool:
        """Whether the averaged weights are what a training gives."""
        return self.ema > 0 or self.ema_width is not None

    def images(self, *, n: int) -> int:
        """Images seen in the whole training, for a data set of ``n`` images."""
        return sum(phase.length(n=n) for phase in self.phases)


class SelfsupConfig(Section):
    """The clusters' own encoder of patches, trained without labels (VICReg: Bardes et al. 2022)."""

    channels: PositiveInt = Field(
        32, multiple_of=8, description="width of the first level; features are 4 times as many"
    )
    invariance: PositiveFloat = Field(25.0, description="weight of the distance of two views, of a covariance's 1")
    variance: PositiveFloat = Field(25.0, description="weight of the spread over patches, of a covariance's 1")
    training: TrainingConfig = TrainingConfig(
        batch_size=64,
        warmup_images=6400,
        lr_decay="cosine",
        phases=(Phase(optimizer="adamw", lr=2e-3, images=64_000),),
    )

    @model_validator(mode="after")
    def _batches_have_a_spread(self) -> SelfsupConfig:
        if self.training.batch_size < 2:
            raise ValueError("training.batch_size must be at least 2: the loss compares the patches of a batch")
        return self


class ClusterClassifierConfig(Section):
    """The network that tells a run's clusters apart from pixels, for faithfulness and usefulness."""

    channels: PositiveInt = Field(32, multiple_of=8, description="width of the first level")
    training: TrainingConfig = TrainingConfig(
        batch_size=32,
        warmup_images=640,
        lr_decay="cosine",
        phases=(Phase(optimizer="adamw", lr=2e-3, images=9_600),),
    )
