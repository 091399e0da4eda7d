"""The noise levels that a sampler passes through, from noise to data.

A level is a step t of the discrete process: there x_t = signal * data + noise * unit noise, with signal^2 + noise^2 = 1
(signal = sqrt(alpha_bar_t)). Both numbers are double precision, and nothing here divides by ``signal``, which is 0 at
the first level of a process with zero terminal SNR. Legend of shapes: T steps of the process, N images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor


@dataclass(frozen=True)
class Level:
    """``step``: what the network is told, -1 for data without noise; ``signal`` and ``noise``: 0..1."""

    step: int
    signal: float
    noise: float

    @staticmethod
    def of(alpha_bar: float, *, step: int) -> Level:
        """The level with the share ``alpha_bar`` of the signal's variance left."""
        return Level(step=step, signal=math.sqrt(alpha_bar), noise=math.sqrt(1 - alpha_bar))

    @property
    def sigma(self) -> float:
        """Noise over signal (Karras et al. 2022), 0..inf."""
        return self.noise / self.signal if self.signal > 0 else math.inf

    @property
    def log_ratio(self) -> float:
        """Lambda = ln(signal / noise) (Lu et al. 2022), -inf..inf."""
        return -math.log(self.sigma) if 0 < self.sigma < math.inf else math.copysign(math.inf, 1 - self.sigma)

    @property
    def angle(self) -> float:
        """From 0 (data) to pi / 2 (noise): signal is its cosine, noise its sine."""
        return math.atan2(self.noise, self.signal)


CLEAN = Level(step=-1, signal=1.0, noise=0.0)

Denoiser = Callable[[Tensor, Level], Tensor]
"""The expected data, given x at a level; one call is one evaluation of the network."""

Noise = Callable[[], Tensor]
"""Unit noise of the shape of x, new at each call; each image has its own source."""


def trailing_steps(T: int, *, count: int, spacing: float = 1.0) -> list[int]:
    """``count`` of the steps 0..T-1, falling, evenly spaced, from the last one on (Lin et al. 2024, table 2).

    In whole numbers: with floating-point strides ``diffusers`` makes a step too many for 61, 103, 121 ... of 1000.
    ``spacing`` above 1: the shares of T that are left are raised to that power, so that steps lie closer near the data.
    """
    assert 1 <= count <= T, f"{count} of {T} steps"
    if spacing == 1:
        return [round(T * (count - i) / count) - 1 for i in range(count)]
    steps: list[int] = []
    for i in range(count):
        room = steps[-1] - 1 if steps else T - 1
        steps.append(max(min(round(T * ((count - i) / count) ** spacing) - 1, room), count - 1 - i))
    return steps


def levels_of(alpha_bar_T: Tensor, *, count: int, spacing: float = 1.0) -> tuple[Level, ...]:
    """``count`` levels of a process with falling ``alpha_bar_T``, and data without noise after them."""
    shares = alpha_bar_T.tolist()
    steps = trailing_steps(len(shares), count=count, spacing=spacing)
    return (*(Level.of(shares[step], step=step) for step in steps), CLEAN)


def keep_and_add(here: Level, *, there: Level) -> tuple[float, float]:
    """The factors of x and of the data that lead to ``there`` where the data are known: x' = keep x + add data.

    DDIM's step (Song et al. 2021, equation 12 without noise), which is also the exponential integrator's step of first
    order (Lu et al. 2022); ``add`` = signal' (1 - exp(lambda - lambda')).
    """
    keep = there.noise / here.noise
    return keep, there.signal - keep * here.signal


def steps_between(levels: Sequence[Level]) -> list[tuple[Level, Level]]:
    """Each level with the one after it."""
    return list(pairwise(levels))
