"""Clusters of patches near each other: who is a neighbour, the loss, and what it finds where k-means does not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from histoloom.clustering.neighbours import (
    BETA,
    NEIGHBOURS,
    REACH,
    LinearNet,
    NeighbourLoss,
    pair_information,
    slide_neighbours,
)
from histoloom.seeding import numpy_generator
from histoloom.training.loop import StepContext


def test_neighbours_are_the_nearest_on_the_same_slide_within_reach() -> None:
    # Two slides with the same places; the third patch of the first lies far away.
    middle_N2 = np.array([[0, 0], [10, 0], [0, 10 * REACH + 1], [0, 0], [10, 0]], float)
    neighbours_NM = slide_neighbours(np.array([0, 0, 0, 1, 1]), middle_N2=middle_N2, side_N=np.full(5, 10.0))
    assert neighbours_NM.shape == (5, NEIGHBOURS)
    assert [set(row) for row in neighbours_NM.tolist()] == [{1}, {0}, {2}, {4}, {3}]


def test_only_the_nearest_are_taken_where_there_are_more() -> None:
    middle_N2 = np.stack([np.arange(40.0), np.zeros(40)], axis=1)
    neighbours_NM = slide_neighbours(np.zeros(40, int), middle_N2=middle_N2, side_N=np.full(40, 100.0))
    assert set(neighbours_NM[20].tolist()) == {16, 17, 18, 19, 21, 22, 23, 24}


def test_slides_in_any_order_have_the_neighbours_of_a_search_by_hand() -> None:
    """Patches of three slides, mixed, of different sides; some have no neighbour, most have fewer than are wanted."""
    rng = numpy_generator(0, "places")
    slide_N, middle_N2 = rng.choice([7, 2, 5], 150), rng.uniform(0, 300, (150, 2))
    side_N = rng.choice([2.0, 8.0, 16.0], 150)
    neighbours_NM = slide_neighbours(slide_N, middle_N2=middle_N2, side_N=side_N)
    counts = set()
    for row in range(150):
        distance_N = np.linalg.norm(middle_N2 - middle_N2[row], axis=1)
        others = [other for other in np.argsort(distance_N) if slide_N[other] == slide_N[row] and other != row]
        near = [other for other in others if distance_N[other] <= REACH * side_N[row]][:NEIGHBOURS]
        counts.add(len(near))
        expected = [near[place % len(near)] for place in range(NEIGHBOURS)] if near else [row] * NEIGHBOURS
        assert neighbours_NM[row].tolist() == expected
    assert {0, 1, NEIGHBOURS - 1, NEIGHBOURS} <= counts


def test_patches_in_the_same_place_are_neighbours_and_not_themselves() -> None:
    neighbours_NM = slide_neighbours(np.zeros(3, int), middle_N2=np.zeros((3, 2)), side_N=np.ones(3))
    assert [set(row) for row in neighbours_NM.tolist()] == [{1, 2}, {0, 2}, {0, 1}]


def test_the_linear_network_starts_as_kmeans() -> None:
    x_ND = numpy_generator(0, "blobs").standard_normal((200, 6)).astype(np.float32)
    x_ND[:100] += 3
    network = LinearNet(6, ks=(2, 4), of_patch=6)
    network.start_from_kmeans(x_ND, seed=5)
    for k, logits_NK in network(torch.from_numpy(x_ND)).items():
        expected_N = KMeans(k, n_init=2, random_state=5 + k).fit_predict(network.pooled(torch.from_numpy(x_ND)).numpy())
        assert adjusted_rand_score(expected_N, logits_NK.argmax(dim=1).numpy()) == 1


def test_training_keeps_weak_clusters_among_many_noisy_features() -> None:
    """Twelve tissues that explain 2 % of the variance of 512 features; neighbours are mostly of the same."""
    N, D, K = 3000, 512, 12
    rng = numpy_generator(0, "noisy features")
    tissue_N = np.repeat(rng.integers(0, K, N // 10), 10)
    raw_ND = 0.15 * rng.standard_normal((K, D))[tissue_N] + rng.standard_normal((N, D))
    x_ND = torch.from_numpy(((raw_ND - raw_ND.mean(0)) / np.sqrt(raw_ND.var(0).mean())).astype(np.float32))
    place_N = np.arange(N)
    neighbours_NM = slide_neighbours(place_N // 500, middle_N2=place_N[:, None] * [1.0, 0.0], side_N=np.ones(N))
    network = LinearNet(D, ks=(K,), of_patch=D)
    network.start_from_kmeans(x_ND.numpy(), seed=0)

    def agreement() -> float:
        with torch.no_grad():
            return float(adjusted_rand_score(tissue_N, network(x_ND)[K].argmax(dim=1).numpy()))

    before = agreement()
    loss, optimizer = NeighbourLoss(network), torch.optim.AdamW(network.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(100):
        rows_B = rng.permutation(N)[:256]
        x_BVD = x_ND[torch.from_numpy(np.concatenate([rows_B[:, None], neighbours_NM[rows_B]], axis=1))]
        context = StepContext(256 * step, step, step / 100, torch.device("cpu"), generator, slice(0, 256), 256)
        optimizer.zero_grad()
        loss(x_BVD, context)[0].backward()
        optimizer.step()
    assert agreement() > before > 0.4


def test_pair_information_is_log_k_for_sure_agreeing_even_clusters_and_zero_for_one_cluster() -> None:
    even_BK = torch.eye(5).repeat(4, 1)
    assert float(pair_information(even_BK, even_BK)) == pytest.approx(math.log(5), abs=1e-5)
    single_BK = torch.eye(5)[:1].repeat(20, 1)
    assert float(pair_information(single_BK, single_BK)) == pytest.approx(0, abs=1e-5)


def test_pair_information_is_the_papers_sum() -> None:
    generator = numpy_generator(0, "pairs")
    p_BK, q_BK = (generator.dirichlet(np.ones(3), size=7) for _ in range(2))
    marginal_K = np.concatenate([p_BK, q_BK]).mean(axis=0)
    expected = np.mean([math.log(sum((p * q) ** BETA / marginal_K)) for p, q in zip(p_BK, q_BK, strict=True)])
    assert float(pair_information(torch.from_numpy(p_BK), torch.from_numpy(q_BK))) == pytest.approx(expected, rel=1e-6)


def test_neighbours_find_tissue_that_kmeans_misses() -> None:
    """Each slide is half one tissue, half another; what differs most between patches has nothing to do with place."""
    generator = numpy_generator(1, "slides")
    slide_N, middle_N2 = np.repeat(np.arange(6), 100), 100 * generator.random((600, 2))
    tissue_N = (middle_N2[:, 0] > 50).astype(int)
    nuisance_N = generator.choice([-2.0, 2.0], size=600)
    x_ND = np.stack([nuisance_N, 1.3 * (2 * tissue_N - 1)], axis=1) + 0.3 * generator.standard_normal((600, 2))
    x_ND = (x_ND / math.sqrt(x_ND.var(axis=0).mean())).astype(np.float32)
    network = LinearNet(2, ks=(2,), of_patch=2)
    network.start_from_kmeans(x_ND, seed=0)
    before = adjusted_rand_score(tissue_N, network(torch.from_numpy(x_ND))[2].argmax(dim=1).numpy())

    neighbours_NM = slide_neighbours(slide_N, middle_N2=middle_N2, side_N=np.full(600, 10.0))
    x_NVD = torch.from_numpy(np.concatenate([x_ND[:, None], x_ND[neighbours_NM]], axis=1))
    loss, optimizer = NeighbourLoss(network), torch.optim.Adam(network.parameters(), lr=0.05)
    generator_of_steps = torch.Generator().manual_seed(0)
    for step in range(200):
        context = StepContext(0, step, 0.0, torch.device("cpu"), generator_of_steps, slice(0, 600), 600)
        value, metrics = loss(x_NVD, context)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    after = adjusted_rand_score(tissue_N, network(torch.from_numpy(x_ND))[2].argmax(dim=1).numpy())
    assert before < 0.1
    assert after > 0.8
    assert float(metrics["agreement"]) > 0.8
