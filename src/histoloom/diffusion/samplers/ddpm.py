"""Ancestral sampling (Ho et al. 2020): all steps of the process as published, or some of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from histoloom.diffusion.samplers.levels import Denoiser, Level, Noise, steps_between


def ddpm(denoise: Denoiser, x: Tensor, *, levels: Sequence[Level], noise: Noise) -> Tensor:
    """Take ``x`` from the first of ``levels`` to the last; one evaluation a step.

    Each step draws from the posterior of x at the next level, given x here and the expected data (equation 7), whose
    variance is (1 - a') / (1 - a) (1 - a / a') with a the share of signal here and a' there.
    """
    for here, there in steps_between(levels):
        still = (here.signal / there.signal) ** 2  # the share of x's variance that one step of the process keeps
        variance = (there.noise / here.noise) ** 2 * (1 - still)
        of_data = there.signal * (1 - still) / here.noise**2
        of_x = math.sqrt(still) * (there.noise / here.noise) ** 2
        x = of_data * denoise(x, here) + of_x * x
        if variance > 0:
            x = x + math.sqrt(variance) * noise()
    return x
