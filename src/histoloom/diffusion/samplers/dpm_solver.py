"""DPM-Solver++(2M) (Lu et al. 2022): the probability-flow ODE by two steps' predictions of the data, second order."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from histoloom.diffusion.samplers.levels import Denoiser, Level, keep_and_add, steps_between


def dpm_solver(denoise: Denoiser, x: Tensor, *, levels: Sequence[Level]) -> Tensor:
    """Take ``x`` from the first of ``levels`` to the last (algorithm 2); one evaluation a step.

    The first step, and one to data without noise, is of first order.
    """
    before: Tensor | None = None
    last_stride = 0.0
    for here, there in steps_between(levels):
        data = denoise(x, here)
        stride = there.log_ratio - here.log_ratio
        ahead = data
        if before is not None and there.noise > 0:
            ahead = data + stride / last_stride / 2 * (data - before)
        keep, add = keep_and_add(here, there=there)
        x = keep * x + add * ahead
        before, last_stride = data, stride
    return x
