from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from histoloom.config import DiffusionConfig, SamplerConfig
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.process import DiffusionLoss, add_noise, alphas_cumprod, training_target
from histoloom.diffusion.sampling import draw_latents
from histoloom.errors import UserError
from histoloom.seeding import torch_generator
from histoloom.sharing.export import make_scheduler
from histoloom.training.loop import StepContext

SHAPE = (2, 4, 4)


def a_config(**changes: object) -> DiffusionConfig:
    return DiffusionConfig.model_validate(
        {"training": {"phases": [{"optimizer": "adam", "lr": 1e-3, "images": 10}]}} | changes
    )


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
def test_the_schedule_is_diffusers_own(schedule: str) -> None:
    config = a_config(schedule=schedule)
    theirs = make_scheduler(config).alphas_cumprod
    torch.testing.assert_close(alphas_cumprod(config).float(), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
def test_a_shifted_schedule_has_so_many_times_the_noise(schedule: str) -> None:
    plain, config = (a_config(schedule=schedule, shift=shift, prediction="v") for shift in (1, 2.5))
    before, after = (((1 - bar) / bar).sqrt() for bar in map(alphas_cumprod, (plain, config)))
    torch.testing.assert_close(after, 2.5 * before)
    theirs = make_scheduler(config)
    torch.testing.assert_close(alphas_cumprod(config).float(), theirs.alphas_cumprod, rtol=1e-3, atol=1e-6)
    assert (theirs.alphas_cumprod.diff() < 0).all()


def test_the_published_schedule() -> None:
    bar = alphas_cumprod(a_config())
    assert len(bar) == 1000
    assert bar[0].item() == pytest.approx(1 - 1e-4)
    assert bar[-1].item() == pytest.approx(4.036e-5, rel=1e-3)  # Ho et al. 2020, section 4: L_T is about 1e-5 bits


def test_noise_and_targets_agree_with_diffusers() -> None:
    config = a_config(prediction="v")
    theirs = DDPMScheduler(beta_start=1e-4, beta_end=0.02, prediction_type="v_prediction")
    generator = torch.Generator().manual_seed(0)
    z, noise = torch.randn(3, *SHAPE, generator=generator), torch.randn(3, *SHAPE, generator=generator)
    steps = torch.tensor([0, 500, 999])
    bar = alphas_cumprod(config).float()[steps]
    torch.testing.assert_close(add_noise(z, noise, alpha_bar_N=bar), theirs.add_noise(z, noise, steps))
    mine = training_target(z, noise, alpha_bar_N=bar, prediction="v")
    torch.testing.assert_close(mine, theirs.get_velocity(z, noise, steps), rtol=1e-4, atol=1e-5)
    assert torch.equal(training_target(z, noise, alpha_bar_N=bar, prediction="epsilon"), noise)
    assert torch.equal(training_target(z, noise, alpha_bar_N=bar, prediction="data"), z)
    assert make_scheduler(a_config(prediction="data")).config.prediction_type == "sample"


def test_flow_matching_is_a_plain_error_of_v_on_the_cosine_schedule() -> None:
    """Kingma and Gao 2023, table 1: straight paths with even times weigh the noise's error by exp(-lambda / 2), too.

    Time t on the path (1 - t) data + t noise has sigma = t / (1 - t); an error of the data is t times one of the
    velocity. Both weights are of the data's error, per unit of ln sigma.
    """
    bar_T = alphas_cumprod(a_config(schedule="cosine", prediction="v"))
    log_sigma_T = ((1 - bar_T).log() - bar_T.log()) / 2
    inside = (log_sigma_T > -3) & (log_sigma_T < 3)
    sigma_T = log_sigma_T.exp()
    of_v_T = (1 + sigma_T**-2) / torch.gradient(log_sigma_T)[0]
    time_T = sigma_T / (1 + sigma_T)
    of_flow_T = time_T**-2 * time_T * (1 - time_T)
    ratio = of_v_T[inside] / of_flow_T[inside]
    assert ratio.max().item() == pytest.approx(ratio.min().item(), rel=0.04)  # apart by the schedule's offset of 0.008


def test_conditions_number_every_pair_once() -> None:
    conditions = Conditions((3, 5))
    numbers = [conditions.number(k=k, cluster=c) for k in (3, 5) for c in range(k)]
    assert numbers == list(range(8))
    assert (conditions.null, conditions.count) == (8, 9)
    assert conditions.numbers(torch.tensor([[2, 4]]).numpy()).tolist() == [[2, 7]]
    with pytest.raises(UserError, match="there are 3, 5"):
        conditions.offset(4)
    with pytest.raises(UserError, match="0 to 2"):
        conditions.number(k=3, cluster=3)


class Recorder(torch.nn.Module):
    """Predicts zero, and keeps the conditions that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.conditions: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, steps: torch.Tensor, *, class_labels: torch.Tensor) -> object:
        self.conditions.append(class_labels)
        return type("Output", (), {"sample": torch.zeros_like(x) + 0 * steps.sum()})


def test_each_example_gets_a_random_k_and_sometimes_no_condition() -> None:
    conditions = Conditions((3, 5))
    network = Recorder()
    loss = DiffusionLoss(a_config(condition_dropout=0.25), unet=network, conditions=conditions)
    n = 4000
    numbers = torch.tensor([[1, 6]]).expand(n, 2)
    context = StepContext(0, 0, 0.0, torch.device("cpu"), torch.Generator().manual_seed(0), slice(0, n), n)
    value, _ = loss((torch.zeros(n, 1, 2, 2), numbers), context)
    shares = [(network.conditions[0] == number).float().mean().item() for number in (1, 6, conditions.null)]
    assert shares == pytest.approx([0.375, 0.375, 0.25], abs=0.03)
    assert value.item() == pytest.approx(1.0, abs=0.05)  # the squared error of 0 against unit noise


class Gaussian(torch.nn.Module):
    """The exact noise prediction for data N(mean of the condition, deviation): the ideal network."""

    means = (0.0, 2.0, -1.0)
    deviation = 0.5

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.bar = alphas_cumprod(config).float()

    def forward(self, x: torch.Tensor, step: torch.Tensor, *, class_labels: torch.Tensor) -> object:
        bar = self.bar[step].reshape(-1, 1, 1, 1)
        mean = torch.tensor(self.means)[class_labels][:, None, None, None]
        variance = bar * self.deviation**2 + 1 - bar
        noise = (1 - bar).sqrt() * (x - bar.sqrt() * mean) / variance
        return type("Output", (), {"sample": noise})


def draw(method: str, *, steps: int, guidance: float = 1.0, n: int = 300) -> torch.Tensor:
    config = a_config()
    return draw_latents(
        Gaussian(config),
        config=config,
        sampler=SamplerConfig(method=method, steps=steps, guidance=guidance),
        shape=SHAPE,
        conditions=[1] * n,
        null=0,
        generators=[torch_generator(0, "test", i) for i in range(n)],
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize(("method", "steps"), [("ddpm", 1000), ("dpm-solver++", 20)])
def test_samplers_are_right_on_a_gaussian(method: str, steps: int) -> None:
    x = draw(method, steps=steps)
    assert x.mean().item() == pytest.approx(2.0, abs=0.03)
    assert x.std().item() == pytest.approx(0.5, abs=0.03)


def test_latents_beyond_one_are_not_clipped() -> None:
    assert draw("ddpm", steps=100).max() > 2.5


def test_guidance_moves_away_from_the_null() -> None:
    means = [draw("dpm-solver++", steps=20, guidance=g, n=50).mean().item() for g in (0.0, 1.0, 2.0)]
    assert means[0] == pytest.approx(0.0, abs=0.1)
    assert means[1] == pytest.approx(2.0, abs=0.1)
    assert means[2] > means[1] + 1
