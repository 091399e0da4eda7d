"""What every registered sampler promises of a sampling that starts from data noised in part."""

from __future__ import annotations

import math

import pytest
import torch
from ideal import DEVIATION, PROCESSES, SHAPE, Ideal

from histoloom.config import SamplerConfig, SamplerMethod
from histoloom.diffusion.samplers import SAMPLERS
from histoloom.diffusion.sampling import PartialNoise, draw_latents, sampling_levels
from histoloom.seeding import torch_generator

METHODS = sorted(SAMPLERS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("process", ["linear", "cosine", "the data themselves"])
@pytest.mark.parametrize("strength", [0.001, 0.02, 0.3, 0.77])
def test_every_sampler_starts_at_an_intermediate_step(method: SamplerMethod, process: str, strength: float) -> None:
    """Gaussian data, noised to any step and drawn from there, are the same Gaussian data."""
    network = Ideal(PROCESSES[process])
    n = 200
    data = 2.0 + DEVIATION * torch.randn(n, *SHAPE, generator=torch_generator(0, "data"))
    out = draw_latents(
        network,
        config=network.config,
        sampler=SamplerConfig(method=method, steps=101, guidance=1.0),
        shape=SHAPE,
        conditions=[1] * n,
        null=0,
        generators=[torch_generator(0, "test", i) for i in range(n)],
        device=torch.device("cpu"),
        partial_noise=PartialNoise(strength, data, data, [0.0] * n),
    )
    assert network.calls[0][0] == round(1000 * strength) - 1
    assert len(network.calls) <= math.ceil(101 * strength) + 1
    assert out.mean().item() == pytest.approx(2.0, abs=0.02)
    assert out.std().item() == pytest.approx(DEVIATION, abs=0.05 if method == "ddpm" else 0.02)
    near = (out - data).abs().mean().item()
    assert near < (0.05 if strength == 0.001 else 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_strength_one_is_pure_noise(method: SamplerMethod) -> None:
    sampler = SamplerConfig(method=method, steps=11)
    config = PROCESSES["cosine"]
    whole = sampling_levels(sampler, config=config)
    assert sampling_levels(sampler, config=config, strength=1.0) == whole
    later = sampling_levels(sampler, config=config, strength=0.45)
    assert later[0].step == 449
    assert SAMPLERS[method].fixed_steps == (set(later[1:]) <= set(whole) and len(later) > 2)
