"""UniPC-2 (Zhao et al. 2023), B(h) = e^h - 1: predictor of second order, corrector of third, one evaluation a step.

What the network says at a level serves twice: it corrects the x that it was asked about, and predicts the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from histoloom.diffusion.samplers.levels import Denoiser, Level, keep_and_add, steps_between


@dataclass(frozen=True)
class Step:
    """A step that was predicted: between which levels, from what, and the data said before it (none at the start)."""

    here: Level
    there: Level
    x: Tensor
    data: Tensor
    earlier: Step | None

    @property
    def stride(self) -> float:
        """In lambda; infinite from pure noise and to data without noise."""
        return self.there.log_ratio - self.here.log_ratio

    @property
    def ratio(self) -> float:
        """Where the data before were said, in strides from ``here``: below 0."""
        assert self.earlier is not None, "has a step before it"
        return -self.earlier.stride / self.stride


def unipc(denoise: Denoiser, x: Tensor, *, levels: Sequence[Level]) -> Tensor:
    """Take ``x`` from the first of ``levels`` to the last (algorithms 1 and 2, data prediction); one evaluation a step.

    The first step's predictor, and a step to data without noise, are of first order.
    """
    last: Step | None = None
    for here, there in steps_between(levels):
        data = denoise(x, here)
        if last is not None:
            x = corrected(last, data=data)
        earlier = None if last is None else Step(last.here, last.there, last.x, last.data, None)
        last = Step(here, there, x, data, earlier)
        x = predicted(last)
    return x


def predicted(step: Step) -> Tensor:
    """UniP: x at the next level by the data said here and before."""
    ahead = step.data
    if step.earlier is not None and step.there.noise > 0:
        ahead = ahead + (step.earlier.data - step.data) / step.ratio / 2
    return _moved(step, data=ahead)


def corrected(step: Step, *, data: Tensor) -> Tensor:
    """UniC: x at the next level by the data said there too."""
    change = data - step.data
    if step.earlier is None:
        return _moved(step, data=step.data + change / 2)
    of_before, of_there = _weights(step)
    return _moved(step, data=step.data + of_before * (step.earlier.data - step.data) + of_there * change)


def _weights(step: Step) -> tuple[float, float]:
    """Equation 10 for two differences: R(h) (a, b) = phi(h) / B(h), solved; the first divided by its ratio."""
    h, r = -step.stride, step.ratio
    first = (math.expm1(h) / h - 1) / math.expm1(h)
    second = 2 * ((math.expm1(h) / h - 1) / h - 0.5) / math.expm1(h)
    of_before = (first - second) / (1 - r)
    return of_before / r, first - of_before


def _moved(step: Step, *, data: Tensor) -> Tensor:
    keep, add = keep_and_add(step.here, there=step.there)
    return keep * step.x + add * data
