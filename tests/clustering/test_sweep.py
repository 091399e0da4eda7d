"""The cheap sweep agrees with the exact indices, with SciPy's tree and with scikit-learn's Rand index."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import cut_tree, ward
from sklearn.metrics import adjusted_rand_score

from histoloom.clustering.validity.indices import INDICES, validity_indices
from histoloom.clustering.validity.null_comparison import Pairs, agreement, agreement_of_restarts, cut, nearest, sweep
from histoloom.seeding import numpy_generator


def points(n: int = 120, d: int = 4) -> np.ndarray:
    return numpy_generator(0, "points").gamma(2.0, size=(n, d))


@pytest.mark.parametrize("k", [2, 7])
def test_indices_are_those_of_the_exact_evaluation(k: int) -> None:
    x_ND = points()
    labels_N = np.arange(len(x_ND)) % k
    exact, quick = validity_indices(torch.from_numpy(x_ND), torch.from_numpy(labels_N)), Pairs(x_ND).indices(labels_N)
    for index in INDICES:
        assert quick[index] == pytest.approx(getattr(exact, index), rel=1e-9)


def test_the_tree_is_cut_as_scipy_cuts_it() -> None:
    tree = ward(points())
    for k in (1, 2, 9, 120):
        assert adjusted_rand_score(cut(tree, k=k), cut_tree(tree, n_clusters=k)[:, 0]) == 1


def test_ties_are_cut_too() -> None:
    grid_ND = np.stack(np.meshgrid(np.arange(6.0), np.arange(6.0)), axis=-1).reshape(-1, 2)
    for k in range(2, 12):
        assert len(np.unique(cut(ward(grid_ND), k=k))) == k


def test_sweep_finds_separated_groups() -> None:
    truth_N = np.arange(120) % 5
    x_ND = points() + 40 * np.eye(5)[truth_N][:, :4]
    part = sweep(x_ND, ks=(4, 5))[5]
    assert adjusted_rand_score(nearest(x_ND, centres_KD=part.centres_KD), truth_N) == 1
    assert part.sizes_K.tolist() == [24] * 5


def test_agreement_is_the_rand_index_and_the_worst_match() -> None:
    rng = numpy_generator(0, "labels")
    first_N, second_N = rng.integers(0, 5, 200), rng.integers(0, 5, 200)
    assert agreement(first_N, second_N, k=5).ari == pytest.approx(adjusted_rand_score(first_N, second_N), rel=1e-12)
    renumbered = agreement(first_N, (first_N + 2) % 5, k=5)
    assert (renumbered.ari, renumbered.weakest) == (1, 1)
    split_N = np.where(np.arange(200) < 100, first_N, 5)  # of every cluster, a part goes to a sixth
    assert agreement(first_N, split_N, k=6).weakest == 0
    halves = agreement(np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 2, 2, 1, 1]), k=3)
    assert halves.weakest == 0


def test_restarts_agree_pair_by_pair() -> None:
    labels = [{3: np.arange(90) % 3}, {3: (np.arange(90) + 1) % 3}, {3: np.arange(90) // 30}]
    aris = agreement_of_restarts(labels)[3]
    assert aris[0] == 1
    assert aris[1] == aris[2] == pytest.approx(adjusted_rand_score(labels[0][3], labels[2][3]))
    assert agreement_of_restarts(labels[:1]) == {}
