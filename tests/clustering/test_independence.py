"""Clusters that ignore the slide: the estimate and its bias, and latents half of whose variance is the slide's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score
from torch import Tensor, nn

from histoloom.clustering.clusterer import Architecture, Clusterer, build
from histoloom.clustering.independence import IndependentLoss, slide_information, slide_share
from histoloom.clustering.infomax import Network
from histoloom.clustering.losses import InfoMaxLoss
from histoloom.config import ClustersConfig, Phase, TrainingConfig
from histoloom.seeding import numpy_generator, torch_generator
from histoloom.training.tasks import StepContext

TISSUES, SLIDES, PER = 4, 4, 8


def context(n: int, *, step: int = 0) -> StepContext:
    return StepContext(
        images=step * n,
        step=step,
        progress=0.0,
        device=torch.device("cpu"),
        generator=torch_generator(0, "step", step),
        rows=slice(0, n),
        batch_size=n,
    )


def test_information_of_sure_clusters_is_that_of_the_labels() -> None:
    rng = numpy_generator(0, "labels")
    slides_N, labels_N = rng.integers(0, 5, 300), rng.integers(0, 3, 300)
    p_NK = torch.eye(3, dtype=torch.float64)[torch.from_numpy(labels_N)]
    slide_ON = torch.from_numpy(np.stack([slides_N, slides_N[::-1]]))
    heads = {3: p_NK, 1: torch.ones(300, 1, dtype=torch.float64)}
    information_HO = slide_information(heads, slide_ON=slide_ON, slides=5)
    information = float(information_HO[0, 0])
    assert information == pytest.approx(mutual_info_score(slides_N, labels_N), abs=1e-6)
    assert float(information_HO[0, 1]) == pytest.approx(mutual_info_score(slides_N[::-1], labels_N), abs=1e-6)
    assert information_HO[1].abs().max() < 1e-9
    assert slide_share({3: p_NK.numpy()}, slides_N=slides_N) == pytest.approx(information / math.log(3))


class Given:
    """A loss of nothing, with fixed probabilities."""

    compiled: tuple[nn.Module, ...] = ()

    def __init__(self, p_NK: Tensor) -> None:
        self.p_NK = p_NK

    def with_heads(self, _batch: Tensor, _tick: StepContext) -> tuple[Tensor, dict[str, Tensor], dict[int, Tensor]]:
        return torch.zeros(()), {}, {self.p_NK.shape[1]: self.p_NK}


def test_the_bias_of_small_batches_is_subtracted() -> None:
    """Clusters that know nothing of the slide: plainly about (4 - 1)(6 - 1) / (2 64) = 0.12 nats, on the mean 0."""
    plain, corrected = [], []
    for number in range(200):
        generator = torch_generator(0, "batch", number)
        p_BK = torch.eye(4)[torch.randint(4, (64,), generator=generator)]
        slide_B = torch.randint(6, (64,), generator=generator)
        plain.append(float(slide_information({4: p_BK}, slide_ON=slide_B[None], slides=6)))
        loss = IndependentLoss(Given(p_BK), weight=1.0, slides=6)
        corrected.append(float(loss((p_BK, slide_B), context(64, step=number))[0]))
    assert np.mean(plain) == pytest.approx(15 / 128, rel=0.25)
    assert abs(np.mean(corrected)) < 0.01


def latents() -> tuple[Tensor, Tensor, np.ndarray]:
    """Latents whose variance over patches is the tissue's and the slide's, half and half; slides; true tissue."""
    tissue_N = np.tile(np.repeat(np.arange(TISSUES), PER), SLIDES)
    slide_N = np.repeat(np.arange(SLIDES), TISSUES * PER)
    means_NC = 2.5 * (np.eye(4, 8)[tissue_N] + np.eye(4, 8, k=4)[slide_N])
    noise_NChw = numpy_generator(1, "noise").standard_normal((len(tissue_N), 8, 6, 6))
    z_NChw = torch.from_numpy((means_NC[:, :, None, None] + noise_NChw).astype(np.float32))
    return (z_NChw - z_NChw.mean(0)), torch.from_numpy(slide_N), tissue_N


def trained(weight: float, *, first: int) -> tuple[float, float]:
    """NMI of the clusters with the tissue and with the slide; ``first``: seed of the weights at first."""
    z_NChw, slide_N, tissue_N = latents()
    training = TrainingConfig(batch_size=64, phases=(Phase(optimizer="adamw", lr=0.01, images=64),))
    config = ClustersConfig(k=(4,), channels=16, independence=weight, training=training)
    torch.manual_seed(first)
    clusterer: Clusterer = build(Architecture(8, 16, (4,)))
    network = clusterer.network.train()
    assert isinstance(network, Network)
    loss = IndependentLoss(InfoMaxLoss(config, network=network), weight=weight, slides=SLIDES)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for step in range(40):
        optimizer.zero_grad()
        value, _ = loss((z_NChw[:, None], slide_N), context(len(z_NChw), step=step))
        value.backward()
        optimizer.step()
    found_N = clusterer.eval().probabilities(z_NChw)[4].argmax(1).numpy()
    return (
        float(normalized_mutual_info_score(tissue_N, found_N)),
        float(normalized_mutual_info_score(slide_N.numpy(), found_N)),
    )


def test_half_of_the_variance_is_the_slide_and_the_switch_finds_the_tissue() -> None:
    """Over first weights: the clusters are partly slides without the switch, and tissue alone with it."""
    without, with_it = (np.array([trained(weight, first=first) for first in range(5)]) for weight in (0.0, 2.0))
    assert without[:, 1].min() > 0.2
    assert without[:, 1].mean() > 0.4
    assert with_it[:, 1].max() < 0.05
    assert (with_it[:, 0] > without[:, 0]).all()
    assert with_it[:, 0].mean() > 0.9
