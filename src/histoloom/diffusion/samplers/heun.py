"""Heun's method (Karras et al. 2022, algorithm 1), second order, two evaluations a step.

The algorithm leaves sigma(t) and s(t) open. Here t is the angle: sigma = tan t, s = cos t, in which the probability
flow is dx/dt = v, finite from pure noise to data. With sigma = t and s = 1, which the paper takes for its own networks,
the first step of a cosine process would go from sigma = 20,000 to 12 and multiply what the network errs by some 60.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from histoloom.diffusion.samplers.levels import Denoiser, Level, keep_and_add, steps_between


def heun(denoise: Denoiser, x: Tensor, *, levels: Sequence[Level]) -> Tensor:
    """Take ``x`` from the first of ``levels`` to the last; a step to data without noise takes one evaluation."""
    for here, there in steps_between(levels):
        data = denoise(x, here)
        if there.noise == 0:
            keep, add = keep_and_add(here, there=there)
            x = keep * x + add * data
            continue
        stride = there.angle - here.angle
        slope = velocity(x, data, level=here)
        guess = x + stride * slope
        x = x + stride / 2 * (slope + velocity(guess, denoise(guess, there), level=there))
    return x


def velocity(x: Tensor, data: Tensor, *, level: Level) -> Tensor:
    """v = signal * unit noise - noise * data (Salimans and Ho 2022), from x and the data in it."""
    return (level.signal * x - data) / level.noise
