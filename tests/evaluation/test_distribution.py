"""Distributions of a run: sets of samples have real tissue's clusters, and the floor is compared as samples are."""

from __future__ import annotations

import numpy as np
import pytest

from histoloom.evaluation.distribution import (
    FLOORS,
    SetFeatures,
    choose_real_rows,
    cluster_quotas,
    cluster_shares,
    distribution_entries,
    draw_rows,
    rows_by_cluster,
)
from histoloom.evaluation.results import DistributionEntry
from histoloom.evaluation.set_metrics import kernel_distance

CLUSTERS = 3
SHARES = (0.6, 0.3, 0.1)


def test_quotas_keep_shares_and_never_need_a_row_twice() -> None:
    available = {0: np.arange(12), 1: np.arange(12, 24), 2: np.arange(24, 36)}
    quotas = cluster_quotas({0: 0.6, 1: 0.3, 2: 0.1}, available=available)
    assert quotas == {0: 12, 1: 6, 2: 2}
    assert cluster_quotas({0: 0.6, 1: 0.3, 2: 0.1}, available=available, most=10) == {0: 6, 1: 3, 2: 1}
    assert sum(cluster_quotas({0: 0.5, 1: 0.5}, available={0: np.arange(9)}).values()) == 0
    assert cluster_quotas({}, available=available) == {}


def test_drawn_rows_are_of_their_cluster_without_repetition() -> None:
    available = rows_by_cluster(np.arange(40) % 4, rows=np.arange(5, 40))
    rows = draw_rows(available, quotas={0: 3, 1: 100, 3: 2, 9: 4}, rng=np.random.default_rng(0))
    assert len(np.unique(rows)) == len(rows) == 3 + 9 + 2
    assert np.bincount(rows % 4, minlength=4).tolist() == [3, 9, 0, 2]
    assert rows.min() >= 5


def test_shares_are_of_the_clusters_that_have_samples() -> None:
    real = {0: np.arange(6), 1: np.arange(3), 2: np.arange(1)}
    assert cluster_shares(real, clusters=[0, 1]) == pytest.approx({0: 6 / 9, 1: 3 / 9})


def test_real_patches_are_held_out_ones_where_there_are_enough() -> None:
    splits = np.array(["train"] * 70 + ["holdout"] * 30)
    chosen = choose_real_rows(splits, most=50, seed=0)
    assert (chosen.split, len(chosen.target), len(chosen.floor)) == ("holdout", 30, 50)
    assert (splits[chosen.target] == "holdout").all()
    assert (splits[chosen.floor] == "train").all()
    few = choose_real_rows(splits[:80], most=50, seed=0)
    assert (few.split, len(few.target), len(few.floor)) == ("train", 35, 35)
    assert not set(few.target) & set(few.floor)


@pytest.fixture
def entries() -> list[DistributionEntry]:
    """Samples are drawn as real patches are, but for cluster 0, which lies elsewhere; all clusters have 40 of them."""
    rng = np.random.default_rng(0)
    labels = rng.choice(CLUSTERS, p=SHARES, size=900)
    centres = 4 * np.eye(CLUSTERS)
    real = centres[labels] + rng.standard_normal((900, CLUSTERS))
    of_samples = np.repeat(np.arange(CLUSTERS), 40)
    synthetic = centres[of_samples] + rng.standard_normal((120, CLUSTERS))
    synthetic[of_samples == 0] += 5
    chosen = choose_real_rows(np.array(["train"] * 600 + ["holdout"] * 300), most=400, seed=0)
    samples = rows_by_cluster(of_samples, rows=np.arange(120))
    return distribution_entries(
        SetFeatures("pixels", np.arange(900), real, synthetic),
        real=chosen,
        labels=labels,
        samples=samples,
        k=CLUSTERS,
        seed=0,
    )


def test_the_wrong_cluster_is_found_and_the_others_are_at_the_floor(entries: list[DistributionEntry]) -> None:
    kid = {entry.cluster: entry for entry in entries if entry.metric == "kid"}
    assert set(kid) == {None, 0, 1, 2}
    assert kid[0].interval[0] > 10 * abs(kid[0].floor)
    for right in (1, 2):
        low, high = kid[right].interval
        assert low < 0.5 < high or abs(kid[right].value) < 0.2 * kid[0].value
    assert kid[None].interval[0] > kid[None].floor_interval[1]


def test_every_entry_says_what_it_is(entries: list[DistributionEntry]) -> None:
    over_all = [entry for entry in entries if entry.cluster is None]
    assert [entry.metric for entry in over_all] == [
        "frechet", "kid", "mmd", "precision", "recall", "density", "coverage",
    ]  # fmt: skip
    for entry in entries:
        assert (entry.k, entry.extractor, entry.real_split) == (CLUSTERS, "pixels", "holdout")
        assert entry.floor_from == FLOORS["holdout"]
        assert entry.interval[0] <= entry.value <= entry.interval[1]
        assert entry.floor_interval[0] <= entry.floor <= entry.floor_interval[1]
        assert entry.n_floor == (entry.n_real, entry.n_synthetic)
    assert {entry.draws for entry in over_all} == {4}
    assert over_all[0].n_real == 300


def test_the_frequency_of_clusters_alone_is_no_distance() -> None:
    """Perfect samples, the same number of each cluster: as they are they would be far from real tissue."""
    rng = np.random.default_rng(1)
    labels = rng.choice(CLUSTERS, p=SHARES, size=900)
    real = 4 * np.eye(CLUSTERS)[labels] + rng.standard_normal((900, CLUSTERS))
    of_samples = np.repeat(np.arange(CLUSTERS), 60)
    synthetic = 4 * np.eye(CLUSTERS)[of_samples] + rng.standard_normal((180, CLUSTERS))
    chosen = choose_real_rows(np.array(["train"] * 600 + ["holdout"] * 300), most=600, seed=0)
    entries = distribution_entries(
        SetFeatures("pixels", np.arange(900), real, synthetic), real=chosen, labels=labels, k=CLUSTERS, seed=0,
        samples=rows_by_cluster(of_samples, rows=np.arange(180)),
    )  # fmt: skip
    kid = next(entry for entry in entries if entry.metric == "kid" and entry.cluster is None)
    as_they_are = kernel_distance(real[600:], synthetic)
    assert abs(kid.value - kid.floor) < 0.1 * as_they_are


def test_too_few_samples_give_no_numbers() -> None:
    rng = np.random.default_rng(2)
    chosen = choose_real_rows(np.array(["train"] * 60 + ["holdout"] * 30), most=60, seed=0)
    features = SetFeatures("pixels", np.arange(90), rng.standard_normal((90, 4)), rng.standard_normal((9, 4)))
    samples = {0: np.arange(9)}
    assert distribution_entries(features, real=chosen, labels=np.zeros(90, int), samples=samples, k=2, seed=0) == []
