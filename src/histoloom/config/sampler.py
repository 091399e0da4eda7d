"""The settings of a sampler, in a run's configuration and in requests."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from histoloom.config.section import Section

SamplerMethod = Literal["ddpm", "ddim", "dpm-solver++", "heun", "unipc", "student"]


class SamplerConfig(Section):
    """How a generator draws."""

    method: SamplerMethod = "unipc"
    steps: PositiveInt = Field(20, description="network evaluations (pairs of them with guidance); odd with heun")
    spacing: float = Field(
        1.0, ge=1, le=3, description="of the steps; 1: even; above: closer near the data, which keeps fine detail"
    )
    guidance: float = Field(1.5, ge=0, description="1: plain conditional sampling; 0: without condition")
    guidance_interval: tuple[float, float] | None = Field(
        None,
        description="sigmas, noise over signal, above the first and up to the second of which guidance is used "
        "(Kynkaanniemi et al. 2024), elsewhere one plain evaluation; none: at all",
    )

    @model_validator(mode="after")
    def _whole_steps(self) -> SamplerConfig:
        if self.method == "heun" and self.steps % 2 == 0:
            raise ValueError(
                f"heun makes two evaluations a step and one for the last: set steps to {self.steps - 1} or "
                f"{self.steps + 1}, not {self.steps}"
            )
        return self

    @model_validator(mode="after")
    def _interval_has_an_effect(self) -> SamplerConfig:
        if self.guidance_interval is None:
            return self
        low, high = self.guidance_interval
        if not 0 <= low < high < math.inf:
            raise ValueError(f"guidance_interval wants two rising numbers from 0 up, got [{low:g}, {high:g}]")
        if self.guidance in (0.0, 1.0):
            raise ValueError(f"guidance_interval has no effect with guidance {self.guidance:g}; set it to null")
        return self
