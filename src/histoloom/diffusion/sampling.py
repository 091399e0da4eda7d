"""Sampling of latents: a sampler, classifier-free guidance, one random stream an image, from noise or from init images.

Shapes: N images, C x H x W normalised latents. They are not clipped: latents are not bounded by 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from histoloom.config import DiffusionConfig, SamplerConfig
from histoloom.diffusion.model.process import alphas_cumprod, predicted_data
from histoloom.diffusion.samplers import SAMPLERS, Level, noise_levels
from histoloom.errors import UserError
from histoloom.training.transfers import background_thread, pinned, pins, to_device

PARALLEL = 1e-4
"""radians; vectors with a smaller angle between them are interpolated linearly"""

StepCallback = Callable[[int, int], None]
"""Called before each noise level with how many are done, and of how many; what it raises ends the sampling."""


@dataclass(frozen=True, eq=False)
class PartialNoise:
    """Init latents that are noised in part (SDEdit: Meng et al. 2022): ``from_NCHW``, or on the way to ``to_NCHW``.

    ``strength``, in (0, 1]: the share of the process's steps that is noised and drawn again; at 1 nothing of the init
    latents is left. ``fraction_N``: the share of the way, 0..1. All on the CPU, so that every device starts from the
    same numbers.
    """

    strength: float
    from_NCHW: Tensor
    to_NCHW: Tensor
    fraction_N: Sequence[float]

    def noised(self, noise_NCHW: Tensor, *, level: Level) -> Tensor:
        """Both ends at ``level``, with the same unit noise, and between them along the arc."""
        if self.strength == 1:
            return noise_NCHW
        ends = [level.signal * z_NCHW + level.noise * noise_NCHW for z_NCHW in (self.from_NCHW, self.to_NCHW)]
        return torch.stack([slerp(a, b, fraction=f) for a, b, f in zip(*ends, self.fraction_N, strict=True)])


def slerp(a: Tensor, b: Tensor, *, fraction: float) -> Tensor:
    """Spherical interpolation (Shoemake 1985): the point at ``fraction``, 0..1, of the arc from ``a`` to ``b``."""
    flat_a, flat_b = a.flatten().double(), b.flatten().double()
    cosine = torch.dot(flat_a, flat_b) / (flat_a.norm() * flat_b.norm()).clamp_min(1e-12)
    angle = torch.arccos(cosine.clamp(-1, 1))
    if angle < PARALLEL:
        return a + fraction * (b - a)
    weights = (torch.sin((1 - fraction) * angle) / torch.sin(angle), torch.sin(fraction * angle) / torch.sin(angle))
    return (weights[0] * flat_a + weights[1] * flat_b).to(a.dtype).reshape(a.shape)


def sampling_levels(sampler: SamplerConfig, *, config: DiffusionConfig, strength: float = 1.0) -> tuple[Level, ...]:
    """The noise levels of a sampling, from the step of ``strength`` on.

    They are as dense as in a whole sampling. A network that was distilled for certain steps is evaluated at the step of
    ``strength`` and at those of its own steps that come after it. ``UserError`` where ``sampler`` does not fit the
    process of ``config``.
    """
    if sampler.steps > config.steps:
        raise UserError(f"at most {config.steps} sampling steps in this generator, got {sampler.steps}")
    alpha_bar_T = alphas_cumprod(config)
    kind = SAMPLERS[sampler.method]
    count = kind.level_count(sampler.steps)
    levels = noise_levels(alpha_bar_T, count=count)
    if strength == 1:
        return levels
    left = max(1, round(len(alpha_bar_T) * strength))
    if kind.fixed_steps:
        # The step of ``strength`` lies between two of its own; from there its DDIM step leads to the next of its own.
        first = noise_levels(alpha_bar_T[:left], count=1)[0]
        return (first, *(level for level in levels if level.step < first.step))
    return noise_levels(alpha_bar_T[:left], count=min(left, max(1, round(count * strength))))


def guided_prediction(
    unet: nn.Module,
    x_NCHW: Tensor,
    *,
    step: Tensor,
    conditions_N: Tensor,
    null: int,
    guidance: float,
    shares_NPHW: Tensor | None = None,
) -> Tensor:
    """The network's output under classifier-free guidance (Ho and Salimans 2022): null + g (conditional - null).

    ``shares_NPHW``: with a map, the share of each condition at each position; ``conditions_N`` is then (N, P).
    """
    null_N = torch.full_like(conditions_N, null)
    if guidance in (0.0, 1.0):
        both_N, repeats = conditions_N if guidance else null_N, 1
    else:
        both_N, repeats = torch.cat([conditions_N, null_N]), 2
    x_MCHW = torch.cat([x_NCHW] * repeats)
    maps = {} if shares_NPHW is None else {"shares": torch.cat([shares_NPHW] * repeats)}
    output_MCHW = unet(x_MCHW, step, class_labels=both_N, **maps).sample.float()
    if repeats == 1:
        return output_MCHW
    conditional_NCHW, unconditional_NCHW = output_MCHW.chunk(2)
    return unconditional_NCHW + guidance * (conditional_NCHW - unconditional_NCHW)


@torch.no_grad()
def draw_latents(
    unet: nn.Module,
    *,
    config: DiffusionConfig,
    sampler: SamplerConfig,
    shape: tuple[int, int, int],
    conditions: Sequence[int],
    null: int,
    generators: Sequence[torch.Generator],
    device: torch.device,
    partial_noise: PartialNoise | None = None,
    on_step: StepCallback | None = None,
) -> Tensor:
    """Latents (N, C, H, W); image i has condition ``conditions[i]`` and the random numbers of ``generators[i]``.

    They start from pure noise, or from ``partial_noise``. ``shape``: (C, H, W). ``UserError`` where ``sampler`` does
    not fit the process.
    """
    assert len(conditions) == len(generators), "one random stream an image"
    strength = 1.0 if partial_noise is None else partial_noise.strength
    levels = sampling_levels(sampler, config=config, strength=strength)
    conditions_N = _on(device, torch.tensor(conditions))
    step_L = _on(device, torch.tensor([level.step for level in levels]))  # before the first step, which must not wait

    def drawn() -> Tensor:
        # On the CPU, so that it is the same for every device.
        noise_NCHW = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        return pinned(noise_NCHW) if pins(device) else noise_NCHW

    def denoise(x_NCHW: Tensor, level: Level) -> Tensor:
        number = levels.index(level)
        if on_step is not None:
            on_step(number, len(levels) - 1)
        output_NCHW = guided_prediction(
            unet, x_NCHW, step=step_L[number], conditions_N=conditions_N, null=null, guidance=sampler.guidance
        )
        return predicted_data(
            output_NCHW, x_NCHW=x_NCHW, signal=level.signal, noise=level.noise, prediction=config.prediction
        )

    start_NCHW = drawn()
    if partial_noise is not None:
        start_NCHW = partial_noise.noised(start_NCHW, level=levels[0])
    kind = SAMPLERS[sampler.method]
    with drawn_ahead(drawn, device=device) if kind.stochastic else nullcontext(drawn) as noise:
        return kind.draw(denoise, _on(device, start_NCHW), levels=levels, noise=lambda: to_device(noise(), device))


@contextmanager
def drawn_ahead(draw: Callable[[], Tensor], *, device: torch.device) -> Iterator[Callable[[], Tensor]]:
    """``draw``, each time called on a thread while a GPU computes the step before; elsewhere ``draw`` itself."""
    if not pins(device):
        yield draw
        return
    with background_thread(device) as pool:
        upcoming = pool.submit(draw)

        def take() -> Tensor:
            nonlocal upcoming
            noise = upcoming.result()
            upcoming = pool.submit(draw)
            return noise

        yield take


def _on(device: torch.device, x: Tensor) -> Tensor:
    """``x``, which is on the CPU, on ``device``; nothing waits for the copy."""
    return to_device(pinned(x) if pins(device) else x, device)
