"""How any network is trained: phases, batches, averages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from histoloom.config.section import Section

Momentum = Annotated[float, Field(ge=0, lt=1)]


class Phase(Section):
    """A stretch of a training with one optimizer."""

    optimizer: Literal["adam", "adamw", "adadelta"] = Field(description="the optimizer")
    lr: PositiveFloat = Field(description="learning rate")
    epochs: PositiveInt | None = Field(None, description="length in passes over the training patches")
    images: PositiveInt | None = Field(None, description="length in images seen, instead of epochs")

    @model_validator(mode="after")
    def _has_one_length(self) -> Phase:
        if (self.epochs is None) == (self.images is None):
            raise ValueError("give exactly one of epochs and images")
        return self

    def length(self, *, n: int) -> int:
        """The phase's length in images seen, for a data set of ``n`` images."""
        return self.images if self.images is not None else (self.epochs or 0) * n


class TrainingConfig(Section):
    """How a network is trained."""

    retired: ClassVar[Mapping[str, Any]] = {"ema_width": None}

    batch_size: PositiveInt = Field(16, description="images per step, over all processes")
    phases: tuple[Phase, ...] = Field(min_length=1, description="the phases, in their order")
    lr_decay: Literal["none", "cosine"] = Field("none", description="learning-rate decay over the last phase")
    warmup_images: int = Field(0, ge=0, description="images over which the learning rate rises linearly at the start")
    grad_clip: PositiveFloat | None = Field(None, description="upper bound of the gradient's norm; null: none")
    ema: float = Field(0.0, ge=0, lt=1, description="decay per step of the weights' moving average; 0: no average")
    betas: tuple[Momentum, Momentum] = Field(
        (0.9, 0.999), description="momenta of the phases with adam or adamw, each from 0 to below 1"
    )

    @model_validator(mode="after")
    def _betas_have_an_effect(self) -> TrainingConfig:
        if self.betas != (0.9, 0.999) and all(phase.optimizer == "adadelta" for phase in self.phases):
            raise ValueError("betas has no effect without a phase of adam or adamw; leave it out")
        return self

    @property
    def averages(self) -> bool:
        """Whether a training returns averaged weights."""
        return self.ema > 0

    def images(self, *, n: int) -> int:
        """Images seen in the whole training, for a data set of ``n`` images."""
        return sum(phase.length(n=n) for phase in self.phases)
