"""Processes, and the network that is ideal for Gaussian data under any of them."""

from __future__ import annotations

import torch
from exact import gaussian

from histoloom.config import DiffusionConfig
from histoloom.diffusion.model.process import alphas_cumprod, training_target
from histoloom.diffusion.samplers import Level

DEVIATION = 0.6
SHAPE = (3, 4, 4)


def a_config(**changes: object) -> DiffusionConfig:
    return DiffusionConfig.model_validate(
        {"training": {"phases": [{"optimizer": "adam", "lr": 1e-3, "images": 10}]}} | changes
    )


PROCESSES = {
    "linear": a_config(),
    "scaled_linear": a_config(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "cosine": a_config(schedule="cosine", prediction="v"),
    "the data themselves": a_config(prediction="data"),
}


class Ideal(torch.nn.Module):
    """The ideal network for data N(mean of the condition, deviation), in any parameterisation; keeps its batches."""

    means = (0.0, 2.0, -1.0)

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.bar = alphas_cumprod(config)
        self.calls: list[tuple[int, list[int]]] = []

    def forward(self, x: torch.Tensor, step: torch.Tensor, *, class_labels: torch.Tensor) -> object:
        self.calls.append((int(step), class_labels.tolist()))
        level = Level.of(self.bar[int(step)].item(), step=int(step))
        mean_N111 = torch.tensor(self.means)[class_labels][:, None, None, None]
        data = mean_N111 + gaussian(0.0, DEVIATION)(x - level.signal * mean_N111, level)
        bar_N = torch.full((len(x),), level.signal**2)
        noise = (x - level.signal * data) / level.noise
        output = training_target(data, noise, alpha_bar_N=bar_N, prediction=self.config.prediction)
        return type("Output", (), {"sample": output})
