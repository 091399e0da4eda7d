"""What is asked of a generator, an image at a time, and what its record says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from histoloom.config import SamplerConfig
from histoloom.names import Label
from histoloom.run.directory import fingerprint
from histoloom.seeding import torch_generator


@dataclass(frozen=True, slots=True)
class InitImage:
    """The picture that an image begins from: ``source``, noised to the step of ``strength``, 0..1.

    With ``other``, another picture: at the share ``fraction``, 0..1, of the way there.
    """

    source: str
    strength: float
    other: str | None = None
    fraction: float = 0.0

    @property
    def record(self) -> dict[str, Any]:
        """What ``metadata.csv`` says of it."""
        return {"source": self.source, "strength": self.strength, "other": self.other or "", "fraction": self.fraction}


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """One image to draw: image ``index`` of ``cluster`` at ``k`` under ``seed``, from noise or from ``origin``."""

    k: int
    cluster: int
    index: int
    seed: int
    origin: InitImage | None = None

    @property
    def sample_id(self) -> str:
        """Tells apart all that one generator draws with one sampler."""
        plain = f"s{self.seed}-k{self.k}-c{self.cluster:02d}-{self.index:06d}"
        return plain if self.origin is None else f"{plain}-{fingerprint(self.origin.record)[:8]}"


def record(order: SampleSpec, *, label: Label, sampler: SamplerConfig) -> dict[str, Any]:
    """One image in words and numbers, as in ``metadata.csv``."""
    said = {
        "sample_id": order.sample_id,
        "k": order.k,
        "cluster": order.cluster,
        "tissue": label.name,
        "flag": label.flag,
        "colour": label.colour,
        "seed": order.seed,
        "index": order.index,
        "sampler": sampler.method,
        "steps": sampler.steps,
        "spacing": sampler.spacing,
        "guidance": sampler.guidance,
        "guidance_interval": sampler.guidance_interval and list(sampler.guidance_interval),
    }
    return said if order.origin is None else said | order.origin.record


def stream(order: SampleSpec) -> torch.Generator:
    """The random numbers of one image; all images between two pictures share theirs, so that only content changes."""
    if order.origin is not None and order.origin.other is not None:
        return torch_generator(order.seed, "between")
    return torch_generator(order.seed, "samples", order.k, order.cluster, order.index)
