"""Information maximisation: entropies against values by hand, and textures that it must separate."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from histoloom.clustering.clusterer import Architecture, Clusterer, build
from histoloom.clustering.infomax import (
    Network,
    conditional_entropy,
    kl_divergence,
    marginal_entropy,
    mutual_information,
    probabilities,
)
from histoloom.clustering.losses import InfoMaxLoss
from histoloom.config import ClustersConfig, Phase, TrainingConfig
from histoloom.seeding import torch_generator
from histoloom.training.tasks import StepContext


def test_entropies_by_hand() -> None:
    """Half of the patches are in cluster 0 with probability 1, the others in clusters 1 and 2 with 0.5 each."""
    p_NK = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]], dtype=torch.float64)
    assert float(marginal_entropy(p_NK)) == pytest.approx(1.5 * math.log(2))
    assert float(conditional_entropy(p_NK)) == pytest.approx(0.5 * math.log(2))
    assert float(mutual_information(p_NK)) == pytest.approx(math.log(2))


@pytest.mark.parametrize("k", [2, 7])
def test_mutual_information_lies_between_zero_and_log_k(k: int) -> None:
    assert float(mutual_information(torch.eye(k))) == pytest.approx(math.log(k), rel=1e-6)
    assert float(mutual_information(torch.full((5, k), 1 / k))) == pytest.approx(0, abs=1e-6)
    assert float(mutual_information(torch.eye(k)[:1].expand(5, k))) == pytest.approx(0, abs=1e-6)
    p_NK = torch.rand(50, k, generator=torch_generator(0, "p")).softmax(1)
    assert 0 <= float(mutual_information(p_NK)) <= math.log(k)


def test_kl_divergence_agrees_with_torch() -> None:
    p_NK, q_NK = torch.rand(2, 9, 4, generator=torch_generator(0, "p")).softmax(2)
    expected = torch.nn.functional.kl_div(q_NK.log(), p_NK, reduction="batchmean")
    assert float(kl_divergence(p_NK, q_NK)) == pytest.approx(float(expected), rel=1e-5)
    assert float(kl_divergence(p_NK, p_NK)) == pytest.approx(0, abs=1e-6)


def test_gradients_are_finite_for_one_hot_probabilities() -> None:
    logits_NK = torch.tensor([[200.0, 0, -200], [0, 200, -200]], requires_grad=True)
    (-mutual_information(logits_NK.softmax(1))).backward()
    assert logits_NK.grad is not None
    assert bool(torch.isfinite(logits_NK.grad).all())


def textures(n: int) -> tuple[Tensor, np.ndarray]:
    """Four kinds with the same moments in every channel: only their spatial pattern differs."""
    labels_N = torch.arange(n) % 4
    noise_NChw = torch.randn(n, 8, 8, 8, generator=torch_generator(0, "textures"))
    rows_h1 = (-1.0) ** torch.arange(8)[:, None]
    columns_1w = (-1.0) ** torch.arange(8)[None, :]
    patterns = [rows_h1.expand(8, 8), rows_h1 * columns_1w]
    sign_N111 = torch.where(noise_NChw[:, :1, :1, :1] > 0, 1.0, -1.0)
    carried_N1hw = sign_N111 * torch.stack([patterns[int(label) % 2] for label in labels_N])[:, None]
    channel_N8 = torch.zeros(n, 8)
    channel_N8[torch.arange(n), (labels_N // 2)] = 3.0
    channel_N8[torch.arange(n), (labels_N // 2) + 2] = 3.0
    return 0.3 * noise_NChw + carried_N1hw * channel_N8[:, :, None, None], labels_N.numpy()


def trained(z_NChw: Tensor, *, config: ClustersConfig, steps: int) -> Clusterer:
    """A few full-batch steps with the stage's own loss."""
    torch.manual_seed(0)
    clusterer = build(Architecture(z_NChw.shape[1], config.channels, config.k))
    network = clusterer.network.train()
    assert isinstance(network, Network)
    loss = InfoMaxLoss(config, network=network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for step in range(steps):
        context = StepContext(
            images=step * len(z_NChw),
            step=step,
            progress=step / steps,
            device=torch.device("cpu"),
            generator=torch_generator(0, "step", step),
            rows=slice(0, len(z_NChw)),
            batch_size=len(z_NChw),
        )
        optimizer.zero_grad()
        value, _ = loss(z_NChw[:, None], context)
        value.backward()
        optimizer.step()
    return clusterer.eval()


def config() -> ClustersConfig:
    training = TrainingConfig(batch_size=64, phases=(Phase(optimizer="adamw", lr=0.01, images=64),))
    return ClustersConfig(k=(3, 4), channels=16, marginal_weight=2.0, training=training)


def test_separates_textures_with_equal_channel_moments() -> None:
    z_NChw, labels_N = textures(160)
    clusterer = trained(z_NChw, config=config(), steps=60)
    predicted_N = clusterer.probabilities(z_NChw)[4].argmax(1).numpy()
    assert normalized_mutual_info_score(labels_N, predicted_N) > 0.9


def test_a_loaded_clusterer_predicts_the_same_in_any_batch_size(tmp_path: Path) -> None:
    z_NChw, _ = textures(50)
    clusterer = trained(z_NChw, config=config(), steps=5)
    clusterer.sort_by_size({3: torch.tensor([4, 30, 16]), 4: torch.tensor([1, 2, 2, 45])})
    clusterer.save(tmp_path)
    whole = clusterer.probabilities(z_NChw)
    loaded = Clusterer.load(tmp_path)
    for k, p_NK in loaded.probabilities(z_NChw).items():
        assert torch.equal(p_NK, whole[k])
        alone_NK = torch.cat([loaded.probabilities(z_1Chw)[k] for z_1Chw in z_NChw.split(1)])
        torch.testing.assert_close(alone_NK, p_NK, atol=1e-6, rtol=1e-5)
        assert torch.equal(alone_NK.argmax(1), p_NK.argmax(1))


def test_clusters_are_renumbered_by_decreasing_size() -> None:
    z_NChw, _ = textures(20)
    clusterer = build(Architecture(8, 16, (3,)))
    before_NK = probabilities(clusterer.network(z_NChw))[3]
    clusterer.sort_by_size({3: torch.tensor([4, 30, 16])})
    torch.testing.assert_close(clusterer.probabilities(z_NChw)[3], before_NK[:, [1, 2, 0]])
