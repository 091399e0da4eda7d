"""All samplers: ways from noise to data through the noise levels of the process.

A level is a step t of the discrete process: there x_t = signal * data + noise * unit noise, with signal^2 + noise^2 = 1
(signal = sqrt(alpha bar)). Both numbers are double precision. A sampler sees the network as a denoiser: the expected
data, given x at a level. So every sampler serves every prediction type.

A new sampler is a function here, a line in ``SAMPLERS``, and its name in ``config.SamplerMethod``.
``docs/explanation/samplers.md`` says why diffusers' own schedulers do not draw. T: steps of the process; x has any
shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from histoloom.config import SamplerMethod


@dataclass(frozen=True)
class Level:
    """A noise level.

    ``step``: the network's input t, -1 for data without noise; ``signal`` and ``noise``: factors of the
    data and of the unit noise, 0..1.
    """

    step: int
    signal: float
    noise: float

    @staticmethod
    def of(alpha_bar: float, *, step: int) -> Level:
        """The level at which the share ``alpha_bar``, 0..1, of the signal's variance is left."""
        return Level(step=step, signal=math.sqrt(alpha_bar), noise=math.sqrt(1 - alpha_bar))

    @property
    def sigma(self) -> float:
        """Noise over signal (Karras et al. 2022), 0..inf."""
        return self.noise / self.signal if self.signal > 0 else math.inf

    @property
    def half_log_snr(self) -> float:
        """Lambda = ln(signal / noise) (Lu et al. 2022), -inf..inf."""
        return -math.log(self.sigma) if 0 < self.sigma < math.inf else math.copysign(math.inf, 1 - self.sigma)

    @property
    def angle(self) -> float:
        """From 0 (data) to pi / 2 (noise): signal is its cosine, noise its sine."""
        return math.atan2(self.noise, self.signal)


CLEAN = Level(step=-1, signal=1.0, noise=0.0)

Denoiser = Callable[[Tensor, Level], Tensor]
"""The expected data, given x at a level; one call is one evaluation of the network (two with guidance)."""

NoiseSource = Callable[[], Tensor]
"""Unit noise of the shape of x, new at each call; each image has its own random stream."""


def trailing_steps(T: int, *, count: int) -> list[int]:
    """``count`` of the steps 0..T-1, falling, evenly spaced, from the last one on (Lin et al. 2024, table 2).

    In whole numbers: with floating-point strides ``diffusers`` makes one step too many for 61, 103, 121 ... of 1000.
    """
    assert 1 <= count <= T, f"{count} of {T} steps"
    return [round(T * (count - i) / count) - 1 for i in range(count)]


def noise_levels(alpha_bar_T: Tensor, *, count: int) -> tuple[Level, ...]:
    """``count`` levels of a process with falling ``alpha_bar_T``, and data without noise after them."""
    alpha_bars = alpha_bar_T.tolist()
    steps = trailing_steps(len(alpha_bars), count=count)
    return (*(Level.of(alpha_bars[step], step=step) for step in steps), CLEAN)


def ddim_factors(here: Level, there: Level) -> tuple[float, float]:
    """The factors of x and of the data in DDIM's step: x' = keep * x + add * data.

    Song et al. 2021, equation 12 without noise. It is also the first-order step of the exponential integrator, in which
    add = signal' (1 - exp(lambda - lambda')) (Lu et al. 2022).
    """
    keep = there.noise / here.noise
    return keep, there.signal - keep * here.signal


def ddpm(denoise: Denoiser, x: Tensor, *, levels: Sequence[Level], noise: NoiseSource) -> Tensor:
    """Ancestral sampling (Ho et al. 2020): all steps of the process as published, or some of them. First order.

    Each step draws from the posterior of x at the next level, given x here and the expected data (equation 7). Its
    variance is (1 - a') / (1 - a) (1 - a / a'), with a the share of signal here and a' there.
    """
    for here, there in pairwise(levels):
        # With a and a' as above: kept = a / a', and the posterior's mean is of_data * data + of_x * x.
        kept = (here.signal / there.signal) ** 2  # the share of x's variance that the process keeps from there to here
        variance = (there.noise / here.noise) ** 2 * (1 - kept)
        of_data = there.signal * (1 - kept) / here.noise**2
        of_x = math.sqrt(kept) * (there.noise / here.noise) ** 2
        x = of_data * denoise(x, here) + of_x * x
        if variance > 0:
            x = x + math.sqrt(variance) * noise()
    return x


def ddim(denoise: Denoiser, x: Tensor, *, levels: Sequence[Level]) -> Tensor:
    """DDIM without noise (Song et al. 2021, equation 12 with eta = 0): the probability-flow ODE, first order."""
    for here, there in pairwise(levels):
        keep, add = ddim_factors(here, there)
        x = keep * x + add * denoise(x, here)
    return x


def dpm_solver(denoise: Denoiser, x: Tensor, *, levels: Sequence[Level]) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): two steps' data predictions, second order.

    The first step, and a step to data without noise, are of first order.
    """
    earlier: Tensor | None = None
    last_stride = 0.0
    for here, there in pairwise(levels):
        data = denoise(x, here)
        stride = there.half_log_snr - here.half_log_snr  # h, infinite to data without noise
        extrapolated = data
        if earlier is not None and there.noise > 0:
            # D of algorithm 2: the data in the middle of the step, from the line through the last two predictions.
            extrapolated = data + stride / last_stride / 2 * (data - earlier)
        keep, add = ddim_factors(here, there)
        x = keep * x + add * extrapolated
        earlier, last_stride = data, stride
    return x


def velocity(x: Tensor, data: Tensor, *, level: Level) -> Tensor:
    """v = signal * unit noise - noise * data (Salimans and Ho 2022), from x and the data in it."""
    return (level.signal * x - data) / level.noise


def heun(denoise: Denoiser, x: Tensor, *, levels: Sequence[Level]) -> Tensor:
    """Heun's method (Karras et al. 2022, algorithm 1): second order, two evaluations a step.

    A step to data without noise takes one evaluation. The algorithm leaves sigma(t) and s(t) open. Here t is the angle:
    sigma = tan t, s = cos t, in which the probability flow is dx/dt = v, finite from pure noise to data. With sigma = t
    and s = 1, which the paper takes for its own networks, the first step of a cosine process would go from sigma =
    20,000 to 12 and multiply the network's error by some 60.
    """
    for here, there in pairwise(levels):
        data = denoise(x, here)
        if there.noise == 0:
            keep, add = ddim_factors(here, there)
            x = keep * x + add * data
            continue
        stride = there.angle - here.angle
        # Euler's step, then the trapezoidal rule with the slope at its end.
        slope = velocity(x, data, level=here)
        guess = x + stride * slope
        x = x + stride / 2 * (slope + velocity(guess, denoise(guess, there), level=there))
    return x


def unipc(denoise: Denoiser, x: Tensor, *, levels: Sequence[Level]) -> Tensor:
    """UniPC-2 (Zhao et al. 2023, algorithms 1 and 2, data prediction, B(h) = e^h - 1), one evaluation a step.

    The predictor is of second order, the corrector of third. The network's output at a level serves twice: it corrects
    the x that it was computed from, and predicts the next. The first step's predictor, and a step to data without
    noise, are of first order.
    """
    # Of the last step: the x that it started from, and the data predicted there and at the level before.
    start = x
    data: Tensor | None = None
    earlier: Tensor | None = None
    stride = ratio = keep = add = 0.0
    for here, there in pairwise(levels):
        output = denoise(x, here)

        # UniC: repeat the last step from its start, now that the data at its end are predicted too.
        if data is not None:
            change = output - data
            corrected = data + change / 2
            if earlier is not None:
                # Equation 10 for two differences: R(h) (a, b) = phi(h) / B(h), solved; a is divided by its ratio.
                h = -stride
                first = (math.expm1(h) / h - 1) / math.expm1(h)
                second = 2 * ((math.expm1(h) / h - 1) / h - 0.5) / math.expm1(h)
                a = (first - second) / (1 - ratio)
                corrected = data + a / ratio * (earlier - data) + (first - a) * change
            x = keep * start + add * corrected

        # UniP: the next x by the data predicted here and before.
        start, earlier, data, last_stride = x, data, output, stride
        stride = there.half_log_snr - here.half_log_snr
        ratio = -last_stride / stride  # where the earlier data were predicted, in strides from here: below 0
        keep, add = ddim_factors(here, there)
        extrapolated = data
        if earlier is not None and there.noise > 0:
            extrapolated = data + (earlier - data) / ratio / 2
        x = keep * start + add * extrapolated
    return x


@dataclass(frozen=True)
class Sampler:
    """A sampler and its properties.

    ``order``: of convergence in the number of steps. ``stochastic``: it draws noise at each step. ``evaluations``: of
    the network, for each step but the last. ``fixed_steps``: its network was distilled for the levels of a whole
    sampling, and must not see others between them.
    """

    function: Callable[..., Tensor]
    order: int
    stochastic: bool = False
    evaluations: int = 1
    fixed_steps: bool = False

    def draw(self, denoise: Denoiser, x: Tensor, *, levels: Sequence[Level], noise: NoiseSource) -> Tensor:
        """Take x from the first of ``levels`` to the last."""
        random = {"noise": noise} if self.stochastic else {}
        return self.function(denoise, x, levels=levels, **random)

    def level_count(self, evaluations: int) -> int:
        """The number of noise levels that so many evaluations of the network serve; the last takes one evaluation."""
        assert (evaluations - 1) % self.evaluations == 0, f"{self.evaluations} a step, and one for the last"
        return (evaluations - 1) // self.evaluations + 1


SAMPLERS: dict[SamplerMethod, Sampler] = {
    "ddpm": Sampler(ddpm, order=1, stochastic=True),
    "ddim": Sampler(ddim, order=1),
    "dpm-solver++": Sampler(dpm_solver, order=2),
    "heun": Sampler(heun, order=2, evaluations=2),
    "unipc": Sampler(unipc, order=3),
    "student": Sampler(ddim, order=1, fixed_steps=True),  # with a network of its own (``histoloom distil``)
}
