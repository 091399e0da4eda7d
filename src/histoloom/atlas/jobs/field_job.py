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
SOME_WINDOWS = 12
"""along each side, of which tissues are counted"""


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


@dataclass(frozen=True)
class FieldPlan:
    """What the time of a field depends on: its map of tissues, h x w cells of ``cell`` px, its size and its sampler."""

    tissue_hw: np.ndarray
    cell: int
    size: tuple[int, int]
    sampler: SamplerConfig
    evaluations: int

    def cost(self, spec: GeneratorSpec) -> float:
        """About how much there is to do, in evaluations of the network for one window."""
        factor, side = spec.size // spec.shape[1], spec.shape[1]
        windows = math.prod(len(window_starts(length // factor, side=side)) for length in self.size)
        passes = 1 if self.sampler.method == STUDENT or self.sampler.guidance in (0.0, 1.0) else 2
        maps = spec.diffusion.condition_maps  # then a window is evaluated once, whatever it shows
        tissues = 1.0 if maps else tissues_of_window(self.tissue_hw, window=-(-spec.size // self.cell))
        return windows * (self.evaluations * passes * tissues + DECODING)


def tissues_of_window(tissue_hw: np.ndarray, *, window: int) -> float:
    """How many tissues a window of ``window`` x ``window`` places has, the mean of some."""
    tops, lefts = (np.linspace(0, max(0, length - window), SOME_WINDOWS).astype(int) for length in tissue_hw.shape)
    return float(np.mean([len(np.unique(tissue_hw[y : y + window, x : x + window])) for y in tops for x in lefts]))


def seconds_of_field(field: FieldPlan, *, preview: Preview, request: PreviewRequest, spec: GeneratorSpec) -> float:
    """About how long a field takes, from how long a preview of it took."""
    height, width = preview.image.shape[:2]
    steps = preview.sampler.steps
    of_preview = FieldPlan(request.labels_HW, 1, (width, height), preview.sampler, steps)
    return preview.seconds * field.cost(spec) / of_preview.cost(spec)
