"""The samplers by name. A new one is a file beside this, a line here, and its name in ``config.SamplerMethod``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from histoloom.config import SamplerMethod
from histoloom.diffusion.samplers.ddim import ddim
from histoloom.diffusion.samplers.ddpm import ddpm
from histoloom.diffusion.samplers.dpm_solver import dpm_solver
from histoloom.diffusion.samplers.heun import heun
from histoloom.diffusion.samplers.levels import Denoiser, Level, Noise
from histoloom.diffusion.samplers.unipc import unipc


class Draw(Protocol):
    """Takes x from the first level to the last."""

    def __call__(self, denoise: Denoiser, x: Tensor, *, levels: Sequence[Level], noise: Noise) -> Tensor: ...


class DrawByOde(Protocol):
    """The same without random numbers."""

    def __call__(self, denoise: Denoiser, x: Tensor, *, levels: Sequence[Level]) -> Tensor: ...


def _as_published(evaluations: int) -> int:
    return evaluations


def _two_a_step(evaluations: int) -> int:
    assert evaluations % 2 == 1, "two a step, and one for the last"
    return (evaluations + 1) // 2


@dataclass(frozen=True)
class Sampler:
    """``order``: of convergence, in the number of steps. ``levels_for``: from evaluations to noise levels.

    ``taught_steps``: its network knows the levels of a whole drawing, and how to come to the next of them.
    """

    draw: Draw
    order: int
    stochastic: bool = False
    levels_for: Callable[[int], int] = _as_published
    taught_steps: bool = False


def _ode(solve: DrawByOde) -> Draw:
    def draw(denoise: Denoiser, x: Tensor, *, levels: Sequence[Level], noise: Noise) -> Tensor:  # noqa: ARG001
        return solve(denoise, x, levels=levels)

    return draw


SAMPLERS: dict[SamplerMethod, Sampler] = {
    "ddpm": Sampler(ddpm, order=1, stochastic=True),
    "ddim": Sampler(_ode(ddim), order=1),
    "dpm-solver++": Sampler(_ode(dpm_solver), order=2),
    "heun": Sampler(_ode(heun), order=2, levels_for=_two_a_step),
    "unipc": Sampler(_ode(unipc), order=3),
    "student": Sampler(_ode(ddim), order=1, taught_steps=True),  # with a network of its own (``histoloom distil``)
}
