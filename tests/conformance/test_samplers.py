"""What every registered sampler promises. A new one is tested here by being registered.

The ideal network of Gaussian data is known, and so is the probability flow: what remains is the sampler's own error.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from exact import counting, even_levels, flow, gaussian, mixture, moments
from ideal import DEVIATION, PROCESSES, SHAPE, Ideal, a_config

from histoloom.config import DiffusionConfig, SamplerConfig, SamplerMethod
from histoloom.diffusion.model.process import alphas_cumprod, predicted_data
from histoloom.diffusion.samplers import CLEAN, SAMPLERS, Level, noise_levels, trailing_steps, velocity
from histoloom.diffusion.sampling import draw_latents
from histoloom.errors import UserError
from histoloom.seeding import torch_generator
from histoloom.sharing.export import make_scheduler

METHODS = sorted(SAMPLERS)
FLOWS = [name for name in METHODS if not SAMPLERS[name].stochastic]
MEAN = 0.7


def levels_for(method: SamplerMethod, evaluations: int, *, process: str = "cosine") -> tuple[Level, ...]:
    count = SAMPLERS[method].level_count(evaluations)
    return noise_levels(alphas_cumprod(PROCESSES[process]), count=count)


def test_steps_fall_from_the_last_whatever_their_number() -> None:
    for count in (1, 2, 3, 20, 61, 500, 999, 1000):
        steps = trailing_steps(1000, count=count)
        assert (len(steps), steps[0]) == (count, 999)
        assert all(here > there >= 0 for here, there in pairwise(steps))
    assert trailing_steps(1000, count=1000) == list(range(999, -1, -1))
    assert trailing_steps(1000, count=20)[-2:] == [99, 49]


@pytest.mark.parametrize("process", ["linear", "cosine"])
@pytest.mark.parametrize("method", ["dpm-solver++", "unipc"])
def test_the_last_step_costs_fine_detail(method: SamplerMethod, process: str) -> None:
    """To data without noise no step is of higher order: of a deviation s it keeps s / sqrt(s^2 + sigma^2)."""
    levels = noise_levels(alphas_cumprod(PROCESSES[process]), count=20)
    kept = [moments(method, gaussian(0.0, s), levels=levels)[1] / s for s in (0.3, 0.1)]
    assert kept == pytest.approx([s / math.hypot(s, levels[-2].sigma) for s in (0.3, 0.1)], abs=0.05)
    assert kept[1] < (0.5 if process == "linear" else 0.74)


def no_noise() -> torch.Tensor:
    raise AssertionError("a deterministic sampler asks for no noise")


def starts(n: int) -> torch.Tensor:
    """Evenly spaced quantiles of unit noise."""
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)


def test_the_registry_is_what_settings_can_name() -> None:
    assert set(SAMPLERS) == set(get_args(SamplerMethod))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("evaluations", [1, 3, 19, 99])
def test_the_network_is_evaluated_as_often_as_was_requested(method: SamplerMethod, evaluations: int) -> None:
    calls: list[int] = []
    denoise = counting(gaussian(MEAN, DEVIATION), calls)
    levels = levels_for(method, evaluations)
    x = SAMPLERS[method].draw(denoise, starts(2), levels=levels, noise=lambda: torch.zeros(2))
    assert len(calls) == evaluations
    assert x.isfinite().all()
    assert calls[0] == 999
    assert calls == sorted(calls, reverse=True)
    assert set(calls) == {level.step for level in levels[:-1]}


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(
    ("method", "evaluations", "error"),
    [
        ("ddpm", 1000, 6e-3),
        ("ddim", 1000, 4e-3),
        ("dpm-solver++", 999, 2e-3),
        ("heun", 999, 2e-3),
        ("unipc", 999, 2e-3),
    ],
)
def test_the_distribution_is_right_on_a_gaussian(
    method: SamplerMethod, evaluations: int, error: float, process: str
) -> None:
    levels = levels_for(method, evaluations, process=process)
    mean, deviation = moments(method, gaussian(MEAN, DEVIATION), levels=levels)
    assert mean == pytest.approx(MEAN, abs=error + 1.1 * levels[0].signal * MEAN)  # x_T was assumed to have mean 0
    assert deviation == pytest.approx(DEVIATION, abs=error)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("method", FLOWS)
def test_each_path_ends_where_the_exact_flow_does(method: SamplerMethod, process: str) -> None:
    errors = []
    for evaluations in (19, 159, 999):
        levels = levels_for(method, evaluations, process=process)
        x = starts(9)
        out = SAMPLERS[method].draw(gaussian(MEAN, DEVIATION), x, levels=levels, noise=no_noise)
        exact = flow(x, mean=MEAN, deviation=DEVIATION, start=levels[0], end=CLEAN)
        errors.append((out - exact).abs().max().item())
    assert errors[0] < 0.15
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2
    assert errors[2] < (0.004 if method in ("ddim", "student") else 0.003)


@pytest.mark.parametrize("method", METHODS)
def test_known_data_are_drawn_exactly_in_any_number_of_steps(method: SamplerMethod) -> None:
    for evaluations in (1, 3, 21):
        levels = levels_for(method, evaluations)
        out = SAMPLERS[method].draw(gaussian(MEAN, 0.0), starts(5), levels=levels, noise=lambda: starts(5))
        torch.testing.assert_close(out, torch.full((5,), MEAN, dtype=torch.float64))


def observed_order(errors: list[float]) -> float:
    """The slope of ln error over halvings of the stride, the coarsest left out."""
    halvings = np.arange(len(errors))[1:]
    return -float(np.polyfit(halvings, np.log2(errors[1:]), 1)[0])


@pytest.mark.parametrize("method", FLOWS)
def test_the_flow_converges_at_the_stated_order(method: SamplerMethod) -> None:
    errors = []
    for count in (16, 32, 64, 128, 256):
        levels = even_levels(count, first=-2.5, last=3.0)
        x = starts(9)
        out = SAMPLERS[method].draw(gaussian(MEAN, DEVIATION), x, levels=levels, noise=no_noise)
        exact = flow(x, mean=MEAN, deviation=DEVIATION, start=levels[0], end=levels[-1])
        errors.append((out - exact).abs().max().item())
    order = SAMPLERS[method].order
    assert order - 0.15 <= observed_order(errors) <= order + 0.6, errors


@pytest.mark.parametrize("method", FLOWS)
def test_the_order_holds_where_the_flow_is_not_linear(method: SamplerMethod) -> None:
    denoise = mixture((-1.0, 1.5), (0.3, 0.7), 0.5)
    x = starts(15)
    runs: list[tuple[SamplerMethod, int]] = [("unipc", 4096), *((method, count) for count in (32, 64, 128, 256))]
    ends = [
        SAMPLERS[name].draw(denoise, x, levels=even_levels(count, first=-2.5, last=3.0), noise=no_noise)
        for name, count in runs
    ]
    errors = [(end - ends[0]).abs().max().item() for end in ends[1:]]
    assert observed_order(errors) >= SAMPLERS[method].order - 0.2, errors


def test_ancestral_sampling_converges_in_distribution_at_first_order() -> None:
    errors = []
    for count in (16, 32, 64, 128, 256):
        levels = even_levels(count, first=-6.0, last=3.0)
        deviation = moments("ddpm", gaussian(0.0, DEVIATION), levels=levels)[1]
        errors.append(abs(deviation - math.hypot(levels[-1].signal * DEVIATION, levels[-1].noise)))
    assert 0.85 <= observed_order(errors) <= 1.3, errors


@pytest.mark.parametrize("process", ["linear", "cosine"])
@pytest.mark.parametrize("method", METHODS)
def test_no_mode_is_lost(method: SamplerMethod, process: str) -> None:
    denoise = mixture((-2.0, 1.0), (0.25, 0.75), 0.2)
    n = 4000
    generator = torch_generator(0, "modes")
    out = SAMPLERS[method].draw(
        denoise,
        starts(n),
        levels=levels_for(method, 101, process=process),
        noise=lambda: torch.randn(n, generator=generator, dtype=torch.float64),
    )
    left = out < -0.5
    assert left.double().mean().item() == pytest.approx(0.25, abs=0.03)
    for side, centre in ((left, -2.0), (~left, 1.0)):
        assert out[side].mean().item() == pytest.approx(centre, abs=0.03)
        assert out[side].std().item() == pytest.approx(0.2, abs=0.04)


def draw(network: Ideal, numbers: list[int], **sampler: object) -> torch.Tensor:
    return draw_latents(
        network,
        config=network.config,
        sampler=SamplerConfig.model_validate({"steps": 11} | sampler),
        shape=SHAPE,
        conditions=[1 + i % 2 for i in numbers],
        null=0,
        generators=[torch_generator(0, "test", i) for i in numbers],
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("method", METHODS)
def test_an_image_depends_on_its_seed_alone(method: SamplerMethod) -> None:
    network = Ideal(a_config(schedule="cosine", prediction="v"))
    together = draw(network, [3, 1, 4, 1, 5], method=method)
    assert torch.equal(together[1], together[3])
    assert not torch.equal(together[0], together[4])
    assert torch.equal(together[2], draw(network, [8, 6, 4, 7, 9], method=method)[2])
    torch.testing.assert_close(together[4], draw(network, [5], method=method)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
@pytest.mark.parametrize("method", METHODS)
def test_all_parameterisations_give_the_same_images(method: SamplerMethod, schedule: str) -> None:
    by_noise, by_v, by_data = (
        draw(Ideal(a_config(schedule=schedule, prediction=kind)), [0, 1, 2], method=method)
        for kind in ("epsilon", "v", "data")
    )
    torch.testing.assert_close(by_noise, by_v, rtol=1e-3, atol=1e-3)  # 1 / signal is up to 160 at the first step
    torch.testing.assert_close(by_data, by_v, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [1, 3, 5, 101])
def test_single_precision_is_finite_at_the_edges(method: SamplerMethod, process: str, steps: int) -> None:
    x = draw(Ideal(PROCESSES[process]), [0, 1], method=method, steps=steps)
    assert x.dtype == torch.float32
    assert x.isfinite().all()
    assert x.abs().max() < 8


def test_a_sampler_of_all_steps_is_allowed_and_one_more_is_not() -> None:
    few = a_config(steps=4)
    for method, steps in (("ddpm", 4), ("ddim", 4), ("dpm-solver++", 4), ("heun", 3), ("unipc", 4)):
        assert draw(Ideal(few), [0], method=method, steps=steps).isfinite().all()
    with pytest.raises(UserError, match="at most 4"):
        draw(Ideal(few), [0], method="ddim", steps=5)


def test_guidance_takes_two_evaluations_and_its_absence_one() -> None:
    network = Ideal(a_config(schedule="cosine", prediction="v"))
    guided = draw(network, [0, 1], method="ddim", guidance=3.0)
    assert [labels for _, labels in network.calls] == [[1, 2, 0, 0]] * 11
    network.calls.clear()
    plain = draw(network, [0, 1], method="ddim", guidance=1.0)
    assert [labels for _, labels in network.calls] == [[1, 2]] * 11
    assert (plain[0].mean() < guided[0].mean()).item()


def test_pure_noise_is_a_slightly_wrong_start() -> None:
    """The last step of the process keeps some signal, noise alone has none: the mean falls short."""
    mean, _ = moments("unipc", gaussian(10.0, 0.1), levels=levels_for("unipc", 999, process="linear"))
    assert 10 - mean == pytest.approx(6.3e-3, abs=1e-4)


def by_diffusers(scheduler: Any, config: DiffusionConfig, *, x: torch.Tensor, steps: int) -> torch.Tensor:
    """What a scheduler of diffusers makes of ``x`` with the ideal network; its noise is that of one image a stream."""
    scheduler.set_timesteps(steps)
    network = Ideal(config)
    generators = [torch_generator(0, "test", i) for i in range(len(x))]
    for generator in generators:
        torch.randn(SHAPE, generator=generator)  # the start
    extra = {} if isinstance(scheduler, UniPCMultistepScheduler) else {"generator": generators}
    for step in scheduler.timesteps:
        output = network(x, step, class_labels=torch.tensor([1 + i % 2 for i in range(len(x))])).sample
        x = scheduler.step(output, step, x, **extra).prev_sample
    return x


@pytest.mark.parametrize(
    ("schedule", "prediction"), [("linear", "epsilon"), ("scaled_linear", "v"), ("cosine", "v"), ("linear", "data")]
)
@pytest.mark.parametrize(
    ("method", "scheduler", "options", "steps"),
    [
        ("ddpm", DDPMScheduler, {}, [1000, 25]),
        ("ddim", DDIMScheduler, {"set_alpha_to_one": True}, [20, 8]),
        ("dpm-solver++", DPMSolverMultistepScheduler, {}, [20, 10, 7]),
        ("unipc", UniPCMultistepScheduler, {"solver_order": 2, "final_sigmas_type": "zero"}, [20, 10, 7, 3]),
    ],
)
def test_diffusers_agrees(
    method: SamplerMethod,
    scheduler: type[Any],
    options: dict[str, object],
    steps: list[int],
    schedule: str,
    prediction: str,
) -> None:
    config = a_config(schedule=schedule, prediction=prediction)
    start = torch.stack([torch.randn(SHAPE, generator=torch_generator(0, "test", i)) for i in range(3)])
    for count in steps:
        theirs = scheduler.from_config(make_scheduler(config).config, timestep_spacing="trailing", **options)
        mine = draw(Ideal(config), [0, 1, 2], method=method, steps=count, guidance=1.0)
        expected = by_diffusers(theirs, config, x=start, steps=count)
        torch.testing.assert_close(mine, expected, rtol=2e-3, atol=2e-3)


def test_heun_is_the_published_algorithm() -> None:
    """Karras et al. 2022, algorithm 1, written out with sigma(t) = tan t, s(t) = cos t."""
    denoise = mixture((-1.0, 1.5), (0.3, 0.7), 0.5)
    levels = even_levels(7, first=-3.0, last=2.0)

    def slope(x: torch.Tensor, t: float) -> torch.Tensor:
        sigma, s = math.tan(t), math.cos(t)
        sigma_rate, s_rate = 1 / math.cos(t) ** 2, -math.sin(t)
        data = denoise(x, Level(step=0, signal=s, noise=s * sigma))  # D(x / s; sigma) of the paper
        return (sigma_rate / sigma + s_rate / s) * x - sigma_rate * s / sigma * data

    x = starts(5)
    for here, there in pairwise(levels):
        t, after = here.angle, there.angle
        first = slope(x, t)
        guess = x + (after - t) * first
        x = x + (after - t) * (first / 2 + slope(guess, after) / 2)
    torch.testing.assert_close(SAMPLERS["heun"].draw(denoise, starts(5), levels=levels, noise=no_noise), x)
    v = velocity(x, denoise(x, levels[0]), level=levels[0])
    data = predicted_data(v, x_NCHW=x, signal=levels[0].signal, noise=levels[0].noise, prediction="v")
    torch.testing.assert_close(data, denoise(x, levels[0]))


def test_the_steps_are_diffusers_where_those_are_as_many_as_asked() -> None:
    """Some counts (61, 103, 121 ...) diffusers rounds to one step more, the last of which is -1."""
    theirs = DPMSolverMultistepScheduler(timestep_spacing="trailing")
    for count in (1, 2, 7, 10, 20, 30, 50, 61, 103, 250, 1000):
        mine = trailing_steps(1000, count=count)
        theirs.set_timesteps(count)
        assert len(mine) == len(set(mine)) == count
        assert mine[0] == 999
        assert mine == theirs.timesteps.tolist()[:count]
