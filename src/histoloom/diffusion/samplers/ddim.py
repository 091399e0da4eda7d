"""DDIM without noise (Song et al. 2021): the probability-flow ODE, first order."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from histoloom.diffusion.samplers.levels import Denoiser, Level, keep_and_add, steps_between


def ddim(denoise: Denoiser, x: Tensor, *, levels: Sequence[Level]) -> Tensor:
    """Take ``x`` from the first of ``levels`` to the last (equation 12, eta = 0); one evaluation a step."""
    for here, there in steps_between(levels):
        keep, add = keep_and_add(here, there=there)
        x = keep * x + add * denoise(x, here)
    return x
