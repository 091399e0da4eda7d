"""The metrics of image pairs, by name, and their computation over many pairs.

A new metric is a function of pairs (its own file) and a line in ``PAIR_METRICS``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch

from histoloom.autoencoder.lpips import LPIPS, MIN_SIZE, Trunk
from histoloom.errors import UserError
from histoloom.evaluation.pairing import Pairs
from histoloom.evaluation.similarity import (
    BETAS,
    WINDOW,
    Images,
    Values,
    lpips,
    ms_ssim,
    ms_ssim_scales,
    require_size,
    ssim,
)

# px of one side of a chunk: what stays in a CPU's cache, where SSIM's filters run several times faster.
_CHUNK_PIXELS = 2**16

Reader = Callable[[np.ndarray], Images]
"""Reads the images of an int array of numbers, in its order: uint8 (n, H, W, 3)."""


class PairFunction(Protocol):
    """Values (P,) of P image pairs, uint8 (P, H, W, 3) each."""

    def __call__(self, a_PHWC: Images, b_PHWC: Images, /) -> Values: ...


@dataclass(frozen=True)
class PairMetric:
    """A metric ready to compute, and what it computes with, in words."""

    name: str
    extractor: str
    function: PairFunction


@dataclass(frozen=True)
class MetricSettings:
    """What a metric may depend on."""

    size: int
    """shorter side of the images, px"""
    trunk: Trunk
    device: torch.device
    download: bool


def _make_ssim(settings: MetricSettings) -> PairMetric:
    require_size(settings.size, least=WINDOW)
    return PairMetric("ssim", "RGB pixels", partial(ssim, device=settings.device))


def _make_ms_ssim(settings: MetricSettings) -> PairMetric:
    require_size(settings.size, least=WINDOW)
    extractor = f"RGB pixels, {ms_ssim_scales(settings.size)} of {len(BETAS)} scales"
    return PairMetric("ms_ssim", extractor, partial(ms_ssim, device=settings.device))


def _make_lpips(settings: MetricSettings) -> PairMetric:
    require_size(settings.size, least=MIN_SIZE)
    network = LPIPS.load(settings.trunk, download=settings.download).to(settings.device)
    extractor = f"LPIPS v0.1, {settings.trunk} trunk"
    return PairMetric("lpips", extractor, partial(lpips, network=network, device=settings.device))


PAIR_METRICS: Mapping[str, Callable[[MetricSettings], PairMetric]] = {
    "ssim": _make_ssim,
    "ms_ssim": _make_ms_ssim,
    "lpips": _make_lpips,
}


def make_metrics(settings: MetricSettings) -> tuple[list[PairMetric], dict[str, str]]:
    """All metrics that can be computed here, and for each other one the reason why not."""
    metrics, missing = [], {}
    for name, make in PAIR_METRICS.items():
        try:
            metrics.append(make(settings))
        except UserError as error:
            missing[name] = str(error)
    return metrics, missing


def measure(
    metrics: Sequence[PairMetric], *, left: Reader, right: Reader, pairs: Pairs, chunk: int | None = None
) -> dict[str, Values]:
    """Each metric's values (P,) of the ``pairs`` (P, 2) of numbers that ``left`` and ``right`` read.

    Memory is bounded by ``chunk`` pairs (chosen by the images' size where None); the values do not depend on it.
    """
    parts: dict[str, list[Values]] = {metric.name: [] for metric in metrics}
    for some in _chunks(pairs, chunk=chunk, left=left):
        a_PHWC, b_PHWC = left(some[:, 0]), right(some[:, 1])
        for metric in metrics:
            parts[metric.name].append(metric.function(a_PHWC, b_PHWC))
    return {name: np.concatenate([np.empty(0), *values]) for name, values in parts.items()}


def _chunks(pairs: Pairs, *, chunk: int | None, left: Reader) -> Iterator[Pairs]:
    if chunk is None and len(pairs):
        height, width = left(pairs[:1, 0]).shape[1:3]
        chunk = max(1, _CHUNK_PIXELS // (height * width))
    for start in range(0, len(pairs), chunk or 1):
        yield pairs[start : start + (chunk or 1)]
