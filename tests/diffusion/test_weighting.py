"""Which noise levels a training attends to."""

from __future__ import annotations

import pytest
import torch

from histoloom.config import DiffusionConfig
from histoloom.diffusion.model.conditions import Conditions
from histoloom.diffusion.model.loss_weighting import (
    LOG_NORMAL_CENTRE,
    LOG_NORMAL_DEVIATION,
    log_sigma,
    step_shares,
    step_weights,
    steps_at,
)
from histoloom.diffusion.model.losses import DiffusionLoss
from histoloom.diffusion.model.noise_schedule import add_noise, alphas_cumprod, target
from histoloom.training.loop import StepContext

SCHEDULES = ["linear", "scaled_linear", "cosine"]


def a_config(**changes: object) -> DiffusionConfig:
    return DiffusionConfig.model_validate(
        {"training": {"phases": [{"optimizer": "adam", "lr": 1e-3, "images": 10}]}} | changes
    )


@pytest.mark.parametrize("centre", [None, 0.5])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_log_normal_draws_a_normal_logarithm_of_sigma_on_every_schedule(schedule: str, centre: float | None) -> None:
    config = a_config(schedule=schedule, prediction="v", weighting="log-normal", weighting_centre=centre)
    share_T, at_T = step_shares(config), log_sigma(config)
    assert share_T is not None
    mean = (share_T * at_T).sum()
    assert share_T.sum().item() == pytest.approx(1)
    assert mean.item() == pytest.approx(LOG_NORMAL_CENTRE if centre is None else centre, abs=0.01)
    assert (share_T * (at_T - mean) ** 2).sum().sqrt().item() == pytest.approx(LOG_NORMAL_DEVIATION, abs=0.02)
    assert torch.equal(step_weights(config), torch.ones(1000))


def test_steps_are_drawn_by_their_shares() -> None:
    share_T = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0], dtype=torch.float64)
    assert steps_at(torch.tensor([0.0, 0.2, 0.25, 0.5, 0.9999999]), shares_T=share_T).tolist() == [1, 1, 3, 3, 3]
    config = a_config(schedule="cosine", prediction="v", weighting="log-normal")
    drawn_N = steps_at((torch.arange(20_000) + 0.5) / 20_000, shares_T=step_shares(config))
    counted_T = torch.bincount(drawn_N, minlength=1000) / 20_000
    torch.testing.assert_close(counted_T.double(), step_shares(config), rtol=0, atol=1e-4)


@pytest.mark.parametrize("weighting", [{"min_snr": 5.0}, {"weighting": "sigmoid"}, {"weighting": "log-normal"}])
def test_a_weighting_means_the_same_whatever_the_network_says(weighting: dict[str, object]) -> None:
    """An error of the data, made an error of what is said, weighs the same in every parameterisation."""
    kinds = ["v", "data"] if weighting == {"weighting": "log-normal"} else ["epsilon", "v", "data"]
    generator = torch.Generator().manual_seed(0)
    data, wrong, noise = (torch.randn(1000, 1, 2, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    errors = []
    for kind in kinds:
        config = a_config(schedule="cosine", prediction=kind, **weighting)
        bar_N = alphas_cumprod(config)
        x = add_noise(data, noise, alpha_bar_N=bar_N)
        bar_N111 = bar_N[:, None, None, None]
        implied = (x - bar_N111.sqrt() * wrong) / (1 - bar_N111).sqrt()
        said = target(wrong, implied, alpha_bar_N=bar_N, prediction=kind)
        wanted = target(data, noise, alpha_bar_N=bar_N, prediction=kind)
        error_N = (said - wanted).pow(2).mean(dim=(1, 2, 3)) * step_weights(config)
        errors.append(error_N / error_N.mean())
    for other in errors[1:]:
        torch.testing.assert_close(errors[0], other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_sigmoid_weighs_levels_of_noise_alike_on_every_schedule(schedule: str) -> None:
    config = a_config(schedule=schedule, weighting="sigmoid", weighting_centre=-0.5)
    weight_T, at_T = step_weights(config).double(), log_sigma(config)
    assert weight_T.mean().item() == pytest.approx(1, abs=1e-6)
    density_T = weight_T / torch.gradient(at_T)[0]
    inside = (at_T > -3) & (at_T < 3)
    expected_T = torch.sigmoid(2 * (at_T + 0.5))
    ratio = density_T[inside] / expected_T[inside]
    assert ratio.max().item() == pytest.approx(ratio.min().item(), rel=1e-4)


def test_flow_matching_is_a_plain_error_of_v_on_the_cosine_schedule() -> None:
    """Kingma and Gao 2023, table 1: straight paths with even times weigh the noise's error by exp(-lambda / 2), too.

    Time t on the path (1 - t) data + t noise has sigma = t / (1 - t); an error of the data is t times one of the
    velocity. Both weights are of the data's error, per unit of ln sigma.
    """
    config = a_config(schedule="cosine", prediction="v")
    at_T = log_sigma(config)
    inside = (at_T > -3) & (at_T < 3)
    sigma_T = at_T.exp()
    of_v_T = (1 + sigma_T**-2) / torch.gradient(at_T)[0]
    time_T = sigma_T / (1 + sigma_T)
    of_flow_T = time_T**-2 * time_T * (1 - time_T)
    ratio = of_v_T[inside] / of_flow_T[inside]
    assert ratio.max().item() == pytest.approx(ratio.min().item(), rel=0.04)  # apart by the schedule's offset of 0.008


class SaysNothing(torch.nn.Module):
    def forward(self, x: torch.Tensor, steps: torch.Tensor, *, class_labels: torch.Tensor) -> object:
        self.steps = steps
        return type("Output", (), {"sample": torch.zeros_like(x) + 0 * class_labels.sum()})


@pytest.mark.parametrize("prediction", ["v", "data"])
@pytest.mark.parametrize("weighting", ["plain", "log-normal", "sigmoid"])
def test_the_loss_draws_and_weighs_as_was_said(weighting: str, prediction: str) -> None:
    config = a_config(schedule="cosine", prediction=prediction, weighting=weighting)
    network, n = SaysNothing(), 4000
    loss = DiffusionLoss(config, unet=network, conditions=Conditions((2,)))
    context = StepContext(0, 0, 0.0, torch.device("cpu"), torch.Generator().manual_seed(0), slice(0, n), n)
    z = torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    value, metrics = loss((z, torch.zeros(n, 1, dtype=torch.int64)), context)
    assert metrics["mse"].item() == pytest.approx(1, abs=0.05)
    middle = log_sigma(config)[network.steps].median().item()
    assert middle == pytest.approx(LOG_NORMAL_CENTRE if weighting == "log-normal" else 0, abs=0.1)
    if weighting == "plain" or (weighting, prediction) == ("log-normal", "v"):
        assert value.item() == pytest.approx(metrics["mse"].item())
    else:
        assert value.item() == pytest.approx(step_weights(config)[network.steps].mean().item(), rel=0.2)
