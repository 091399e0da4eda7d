"""Data whose ideal network and whose probability flow are known, to measure samplers against. Double precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from histoloom.config import SamplerMethod
from histoloom.diffusion.samplers import SAMPLERS, Denoiser, Level


def gaussian(mean: float, deviation: float) -> Denoiser:
    """The expected data given x, for data N(mean, deviation^2)."""

    def denoise(x: Tensor, level: Level) -> Tensor:
        gain = level.signal * deviation**2 / (level.signal**2 * deviation**2 + level.noise**2)
        return mean + gain * (x - level.signal * mean)

    return denoise


def mixture(means: Sequence[float], weights: Sequence[float], deviation: float) -> Denoiser:
    """The same for a mixture of Gaussians of one deviation."""
    m_K, w_K = torch.tensor(means, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)

    def denoise(x: Tensor, level: Level) -> Tensor:
        variance = level.signal**2 * deviation**2 + level.noise**2
        away = x[..., None] - level.signal * m_K
        share = torch.softmax(w_K.log() - away**2 / (2 * variance), dim=-1)
        return (share * (m_K + level.signal * deviation**2 / variance * away)).sum(dim=-1)

    return denoise


def flow(x: Tensor, *, mean: float, deviation: float, start: Level, end: Level) -> Tensor:
    """Where the probability-flow ODE of N(mean, deviation^2) takes ``x``: each quantile to the same quantile."""
    before, after = (math.hypot(level.signal * deviation, level.noise) for level in (start, end))
    return end.signal * mean + after / before * (x - start.signal * mean)


def even_levels(count: int, *, first: float, last: float) -> tuple[Level, ...]:
    """``count`` + 1 levels of evenly spaced lambda (ln of signal over noise); none of them is data without noise."""
    lambdas = [first + (last - first) * i / count for i in range(count + 1)]
    return tuple(Level.of(1 / (1 + math.exp(-2 * value)), step=count - i) for i, value in enumerate(lambdas))


def counting(denoise: Denoiser, calls: list[int]) -> Denoiser:
    """The same denoiser; each call leaves its step in ``calls``."""

    def counted(x: Tensor, level: Level) -> Tensor:
        calls.append(level.step)
        return denoise(x, level)

    return counted


def impulses(levels: Sequence[Level]) -> tuple[Tensor, Callable[[], Tensor]]:
    """A batch of starts, and of noises for each step, in which image 0 has none and each other image one unit of one.

    For linear denoisers a sampler is linear in these; the sum of squares of what each unit changes is the variance of
    what comes out, exactly.
    """
    draws = iter(torch.eye(len(levels) + 1, dtype=torch.float64)[:, 1:].T)
    return next(draws), lambda: next(draws)


def moments(method: SamplerMethod, denoise: Denoiser, *, levels: Sequence[Level]) -> tuple[float, float]:
    """Mean and deviation, exact, of what ``method`` draws from unit noise with a linear denoiser."""
    start, noise = impulses(levels)
    out = SAMPLERS[method].draw(denoise, start, levels=levels, noise=noise)
    return out[0].item(), (out[1:] - out[0]).norm().item()
