"""Which condition of a pretrained generator a new cluster starts from, on data whose ideal network is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from histoloom.config import DiffusionConfig
from histoloom.diffusion.model.process import alphas_cumprod
from histoloom.diffusion.model.warm_start import closest_conditions, denoising_errors

MEANS = torch.tensor([-2.0, 0.0, 2.0])
DEVIATION = 0.5


class Ideal(nn.Module):
    """The ideal network for data that are normal around one of ``MEANS``, which its condition names."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.prediction = config.prediction
        self.alpha_bar_T = alphas_cumprod(config).float()

    def forward(self, x_NCHW: Tensor, steps_N: Tensor, *, class_labels: Tensor) -> SimpleNamespace:
        a = self.alpha_bar_T[steps_N][:, None, None, None]
        mean = MEANS[class_labels][:, None, None, None]
        gain = a.sqrt() * DEVIATION**2 / (a * DEVIATION**2 + 1 - a)
        data = mean + gain * (x_NCHW - a.sqrt() * mean)
        noise = (x_NCHW - a.sqrt() * data) / (1 - a).sqrt()
        output = {"data": data, "epsilon": noise, "v": a.sqrt() * noise - (1 - a).sqrt() * data}
        return SimpleNamespace(sample=output[self.prediction])


@pytest.mark.parametrize("prediction", ["epsilon", "v", "data"])
def test_clusters_start_from_what_fits_them_best(prediction: str) -> None:
    """The generator's clusters in another order; two of them joined; each cut in two."""
    training = {"phases": [{"optimizer": "adam", "lr": 1e-3, "images": 10}]}
    config = DiffusionConfig.model_validate({"prediction": prediction, "schedule": "cosine", "training": training})
    generator = torch.Generator().manual_seed(0)
    kind_M = np.arange(90) % 3
    z_MChw = MEANS[torch.from_numpy(kind_M)][:, None, None, None] + DEVIATION * torch.randn(
        90, 2, 4, 4, generator=generator
    )
    errors_MG = denoising_errors(
        Ideal(config), z_MChw, config=config, conditions=range(3), generator=generator, device=torch.device("cpu")
    )
    assert errors_MG.shape == (90, 3)
    other_order = closest_conditions(errors_MG, labels_M=np.array([2, 0, 1])[kind_M], k=3)
    assert other_order[[2, 0, 1]].tolist() == [0, 1, 2]
    joined = closest_conditions(errors_MG, labels_M=(kind_M == 2).astype(int), k=2)
    assert joined[1] == 2
    assert joined[0] != 2
    halves = closest_conditions(errors_MG, labels_M=2 * kind_M + np.arange(90) // 45, k=6)
    assert halves.tolist() == [0, 0, 1, 1, 2, 2]


def test_one_condition_that_fits_all_is_given_to_one_cluster() -> None:
    errors_MG = np.array([[0.1, 0.5, 0.4], [0.1, 0.2, 0.6]])
    assert closest_conditions(errors_MG, labels_M=np.array([0, 1]), k=2).tolist() == [0, 1]


def test_a_cluster_without_patches_takes_what_is_left() -> None:
    errors_MG = np.array([[0.1, 0.9, 0.4], [0.9, 0.1, 0.4]])
    assert closest_conditions(errors_MG, labels_M=np.array([0, 1]), k=3).tolist() == [0, 1, 2]
