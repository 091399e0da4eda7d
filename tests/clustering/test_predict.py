"""The same cluster for the same patch: whatever else is predicted, in any order and in any batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from histoloom.autoencoder.latents import LatentSet
from histoloom.clustering.classifier import Classifier
from histoloom.clustering.clusterer import TIGHT, Architecture, Clusterer, build
from histoloom.clustering.clustering_set import Clustering
from histoloom.clustering.features.bank import FEATURES
from histoloom.clustering.infomax import Network
from histoloom.seeding import permutation, torch_generator
from histoloom.slides.patch_set import PatchSet


@pytest.fixture(scope="module")
def classifier(tiny_run: Path) -> Classifier:
    """The finished tiny run's encoder and clusterer."""
    folders = {stage: tiny_run / stage for stage in ("autoencoder", "latents", "clusters")}
    return Classifier.load(**folders, device=torch.device("cpu"))


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_probabilities_of_features_do_not_depend_on_the_batch(tiny_run: Path, batch: int) -> None:
    x_ND = torch.from_numpy(np.load(tiny_run / "clusters" / FEATURES))
    clusterer = Clusterer.load(tiny_run / "clusters")
    order = permutation(0, "order", n=len(x_ND))
    parts = [clusterer.probabilities(x_ND[order[i : i + batch]]) for i in range(0, len(order), batch)]
    for k, p_NK in clusterer.probabilities(x_ND).items():
        assert torch.equal(torch.cat([part[k] for part in parts]), p_NK[order])
        np.testing.assert_array_equal(p_NK.numpy(), Clustering.open(tiny_run / "clusters").probabilities(k))


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_probabilities_of_latents_do_not_depend_on_the_batch(tiny_run: Path, batch: int) -> None:
    latents = LatentSet.open(tiny_run / "latents")
    torch.manual_seed(0)
    clusterer = build(Architecture(latents.shape[0], 16, (2, 3)))
    order = permutation(0, "order", n=len(latents))
    parts = [clusterer.probabilities(latents.normalised(order[i : i + batch])) for i in range(0, len(order), batch)]
    for k, p_NK in clusterer.probabilities(latents.normalised(np.arange(len(latents)))).items():
        assert torch.equal(torch.cat([part[k] for part in parts]), p_NK[order])


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_clusters_of_patches_do_not_depend_on_the_batch(tiny_run: Path, classifier: Classifier, batch: int) -> None:
    patches = PatchSet.open(tiny_run / "patches")
    order = permutation(1, "order", n=len(patches))[:40]

    def classify(rows_N: np.ndarray) -> dict[int, np.ndarray]:
        return classifier.labels(patches.images(rows_N), patches.surroundings(rows_N))

    parts = [classify(order[i : i + batch]) for i in range(0, len(order), batch)]
    for k, labels_N in classify(np.sort(order)).items():
        found_N = np.concatenate([part[k] for part in parts])
        np.testing.assert_array_equal(found_N[np.argsort(order)], labels_N)
        published_N = Clustering.open(tiny_run / "clusters").table[f"k{k}"].to_numpy()
        np.testing.assert_array_equal(labels_N, published_N[np.sort(order)])


def test_patches_between_two_clusters_are_decided_in_double_precision() -> None:
    """Two heads of equal weights but for a hair: single precision cannot tell the clusters apart, double can."""
    torch.manual_seed(0)
    clusterer = build(Architecture(4, 16, (2,)))
    assert isinstance(clusterer.network, Network)
    head = clusterer.network.heads["2"]
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        head.weight[1] = head.weight[0] * (1 + 2e-7)
        head.bias.zero_()
    z_NChw = torch.randn(40, 4, 8, 8, generator=torch_generator(0, "z"))
    p_NK = clusterer.probabilities(z_NChw)[2]
    exact_NK = clusterer.network.double()(z_NChw.double())[2].softmax(1)
    assert float((p_NK[:, 0] - p_NK[:, 1]).abs().max()) < TIGHT
    torch.testing.assert_close(p_NK, exact_NK.float(), atol=0, rtol=1e-7)
