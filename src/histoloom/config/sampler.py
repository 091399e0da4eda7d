"""The settings of a sampler, in a run's configuration and in requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from histoloom.config.section import Section

SamplerMethod = Literal["ddpm", "ddim", "dpm-solver++", "heun", "unipc", "student"]


class SamplerConfig(Section):
    """How a generator draws."""

    retired: ClassVar[Mapping[str, object]] = {"spacing": 1.0, "guidance_interval": None}

    method: SamplerMethod = "unipc"
    steps: PositiveInt = Field(20, description="network evaluations (pairs of them with guidance); odd with heun")
    guidance: float = Field(1.5, ge=0, description="1: plain conditional sampling; 0: without condition")

    @model_validator(mode="after")
    def _whole_steps(self) -> SamplerConfig:
        if self.method == "heun" and self.steps % 2 == 0:
            raise ValueError(
                f"heun makes two evaluations a step and one for the last: set steps to {self.steps - 1} or "
                f"{self.steps + 1}, not {self.steps}"
            )
        return self
