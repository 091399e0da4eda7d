"""Painting for the page: a field as ``histoloom paint`` makes it, and a preview of a layout within seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histoloom.atlas.jobs.job_log import FIELD_FOLDER, LAYOUT_FILE, FieldSpec
from histoloom.config import SamplerConfig
from histoloom.diffusion.generation.generator import Generator
from histoloom.diffusion.generation.generator_spec import STUDENT, GeneratorSpec, StudentRecord
from histoloom.diffusion.generation.request import Request
from histoloom.diffusion.generation.run_request import sampler_of
from histoloom.diffusion.painting.field import window_starts
from histoloom.diffusion.painting.job import OnProgress, PaintSettings, paint_array, paint_file

QUICK_STEPS = 6
"""evaluations of a preview by a generator without a student"""
DECODING = 0.5
"""about how long decoding takes, in evaluations of the network"""


@dataclass(frozen=True)
class PreviewRequest:
    """A small field: ``labels_HW``, a place in ``names`` for each pixel, painted quickly."""

    labels_HW: np.ndarray
    names: tuple[str, ...]
    k: int
    seed: int
    softness: float


@dataclass(frozen=True)
class Preview:
    """A painted preview, uint8 (H, W, 3), how it was painted, and the seconds that it took."""

    image: np.ndarray
    sampler: SamplerConfig
    seconds: float


def paint_job(
    generator: Generator, request: Request, *, field: FieldSpec, folder: Path, on_progress: OnProgress
) -> None:
    """Paint the layout in a job's folder; one that was stopped continues. ``UserError``, and what the callback raises.

    The settings are those that ``FieldSpec.command`` names, so that the command line continues the same field.
    """
    settings = PaintSettings(
        seed=request.seed, k=request.k, softness=field.softness, sampler=sampler_of(request, generator)
    )
    paint_file(
        generator,
        folder / LAYOUT_FILE,
        out=folder / FIELD_FOLDER,
        settings=settings,
        size_px=field.size,
        on_progress=on_progress,
    )


def paint_preview(generator: Generator, request: PreviewRequest, *, on_progress: OnProgress) -> Preview:
    """Paint a preview. ``UserError``."""
    sampler = quick_sampler(generator)
    settings = PaintSettings(seed=request.seed, k=request.k, softness=request.softness, sampler=sampler)
    started = time.monotonic()
    painted = paint_array(generator, request.labels_HW, names=request.names, settings=settings, on_progress=on_progress)
    return Preview(painted.image, sampler, time.monotonic() - started)


def draw_examples(
    generator: Generator, tissues: Sequence[str], *, k: int, on_progress: OnProgress
) -> dict[str, np.ndarray]:
    """A picture of each tissue, uint8 (size, size, 3): the same ones at each call."""
    specs = [generator.sample_specs(tissue, n=1, seed=0, k=k)[0] for tissue in tissues]
    drawn = generator.draw(specs, sampler=quick_sampler(generator), on_step=on_progress)
    return {tissue: sample.image for tissue, sample in zip(tissues, drawn, strict=True)}


def quick_sampler(generator: Generator) -> SamplerConfig:
    """The student where there is one, else a few steps."""
    if StudentRecord.load(generator.home / STUDENT) is not None:
        return sampler_of(Request(n=1, method=STUDENT), generator)
    steps = min(QUICK_STEPS, generator.spec.sampler.steps)
    return SamplerConfig(method="unipc", steps=steps, guidance=generator.spec.sampler.guidance)


def size_on_disk(size: tuple[int, int], *, spec: GeneratorSpec, evaluations: int) -> int:
    """Bytes that a field of (width, height) px takes at most while it is painted."""
    pixels, (channels, side, _) = size[0] * size[1], spec.shape
    latents = pixels / (spec.size / side) ** 2
    # Its pixels and the coarser levels of its pyramid, the TIFF of both, the mask; the predicted data in float32.
    return round(pixels * (4 + 4 + 1) + latents * channels * evaluations * 4)


def seconds_of_field(
    preview: Preview, *, size: tuple[int, int], sampler: SamplerConfig, evaluations: int, spec: GeneratorSpec
) -> float:
    """About how long a field of (width, height) px takes, from how long a preview took."""

    def cost(width: int, height: int, *, of: SamplerConfig, evaluations: int) -> float:
        factor = spec.size // spec.shape[1]
        windows = (len(window_starts(side // factor, side=spec.shape[1])) for side in (width, height))
        passes = 1 if of.method == STUDENT or of.guidance in (0.0, 1.0) else 2
        return math.prod(windows) * (evaluations * passes + DECODING)

    height, width = preview.image.shape[:2]
    of_preview = cost(width, height, of=preview.sampler, evaluations=preview.sampler.steps)
    return preview.seconds * cost(*size, of=sampler, evaluations=evaluations) / of_preview
