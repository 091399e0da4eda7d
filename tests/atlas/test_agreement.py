"""Kappa against scikit-learn and published examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from histoloom.atlas.browse.agreement import Kappa, agreements, cohen, counts, disagreements, fleiss
from histoloom.names import add_name, read_label_state
from histoloom.seeding import numpy_generator

# Fleiss 1971, table 1: 30 patients, 6 psychiatrists, 5 diagnoses.
FLEISS_1971 = np.array(
    [
        *([0, 0, 0, 6, 0], [0, 3, 0, 0, 3], [0, 1, 4, 0, 1], [0, 0, 0, 0, 6], [0, 3, 0, 3, 0], [2, 0, 4, 0, 0]),
        *([0, 0, 4, 0, 2], [2, 0, 3, 1, 0], [2, 0, 0, 4, 0], [0, 0, 0, 0, 6], [1, 0, 0, 5, 0], [1, 1, 0, 4, 0]),
        *([0, 3, 3, 0, 0], [1, 0, 0, 5, 0], [0, 2, 0, 3, 1], [0, 0, 5, 0, 1], [3, 0, 0, 1, 2], [5, 1, 0, 0, 0]),
        *([0, 2, 0, 4, 0], [1, 0, 2, 0, 3], [0, 0, 0, 0, 6], [0, 1, 0, 5, 0], [0, 2, 0, 1, 3], [2, 0, 0, 4, 0]),
        *([1, 0, 0, 4, 1], [0, 5, 0, 1, 0], [4, 0, 0, 0, 2], [0, 2, 0, 4, 0], [1, 0, 5, 0, 0], [0, 0, 0, 0, 6]),
    ]
)
# The worked example of Wikipedia, "Fleiss' kappa": 10 subjects, 14 raters, 5 categories; kappa 0.210.
WORKED = np.array(
    [
        *([0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]),
        *([7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]),
    ]
)


def interval(kappa: Kappa) -> tuple[float, float, float]:
    """Lower end, value and upper end of a kappa that has them."""
    low, value, high = (float("nan") if number is None else number for number in (kappa.low, kappa.value, kappa.high))
    return low, value, high


def test_cohen_agrees_with_scikit_learn() -> None:
    rng = numpy_generator(0, "kappa")
    for n, names in ((10, 3), (14, 8), (200, 5)):
        first, second = rng.integers(names, size=(2, n)).astype(str)
        second[: n // 2] = first[: n // 2]
        weights = rng.integers(1, 500, size=n).astype(float)
        for weights_N in (np.ones(n), weights):
            ours = cohen(first.tolist(), second.tolist(), weights_N=weights_N.tolist())
            low, value, high = interval(ours)
            assert value == pytest.approx(cohen_kappa_score(first, second, sample_weight=weights_N), abs=1e-12)
            assert -1 <= low < value < high <= 1


def test_weights_by_patches_are_as_if_patches_were_named() -> None:
    first, second, sizes = ["a", "b", "b", "c"], ["a", "b", "c", "c"], [50, 30, 15, 5]
    patches = cohen_kappa_score(np.repeat(first, sizes), np.repeat(second, sizes))
    assert cohen(first, second, weights_N=sizes).value == pytest.approx(patches, abs=1e-12)


def test_fleiss_gives_the_published_numbers() -> None:
    assert FLEISS_1971.sum(axis=0).tolist() == [26, 26, 30, 55, 43]
    published = fleiss(FLEISS_1971, weights_N=[1.0] * 30)
    assert published.observed == pytest.approx(0.556, abs=5e-4)
    assert published.value == pytest.approx(0.430, abs=5e-4)
    assert fleiss(WORKED, weights_N=[1.0] * 10).value == pytest.approx(0.210, abs=5e-4)


def test_fleiss_weights_are_as_if_patches_were_named() -> None:
    sizes = np.arange(1, 11)
    repeated = fleiss(np.repeat(WORKED, sizes, axis=0), weights_N=[1.0] * int(sizes.sum()))
    weighted = fleiss(WORKED, weights_N=sizes.tolist())
    assert weighted.value == pytest.approx(repeated.value, abs=1e-12)
    assert interval(weighted)[0] < interval(repeated)[0], "ten clusters are not 55"


def test_limits() -> None:
    same = cohen(["a", "b", "c"], ["a", "b", "c"], weights_N=[1, 1, 1])
    assert (same.observed, same.value, same.high) == (1, 1, 1)
    assert interval(same)[0] < 0.5, "three clusters say little"
    alike = cohen(["a", "a"], ["a", "a"], weights_N=[1, 1])
    assert (alike.observed, alike.value, alike.low) == (1, None, None)
    assert counts([["a", "b"], ["b", "b"], ["a", "c"]]).tolist() == [[2, 1, 0], [0, 2, 1]]


def test_raters_of_a_run(tmp_path: Path) -> None:
    given_names = {
        "A": ["Bone", "fat", "voids", "edge", ""],
        "B": ["bone ", "fat", "empty  SPACE", "edge", "blood"],
        "C": ["bone", "fat", "empty space", "", "blood"],
        "D": ["", "", "", "", ""],
    }
    for rater, names in given_names.items():
        for cluster, name in enumerate(names):
            if name:
                add_name(tmp_path, cluster=cluster, name=name, k=5, rater=rater)
    state, sizes = read_label_state(tmp_path, k=5), [50, 20, 15, 10, 5]
    by_raters = {row.raters: row for row in agreements(state, sizes=sizes)}
    assert list(by_raters) == [("A", "B"), ("A", "C"), ("B", "C"), ("A", "B", "C")]
    assert {raters: (row.clusters, row.patches) for raters, row in by_raters.items()} == {
        ("A", "B"): (4, 95),
        ("A", "C"): (3, 85),
        ("B", "C"): (4, 90),
        ("A", "B", "C"): (3, 85),
    }
    observed = {
        raters: tuple(round(kappa.observed, 6) for kappa in (row.equal, row.by_patches) if kappa is not None)
        for raters, row in by_raters.items()
        if len(raters) == 2
    }
    assert observed == {
        ("A", "B"): (round(3 / 4, 6), round(80 / 95, 6)),
        ("A", "C"): (round(2 / 3, 6), round(70 / 85, 6)),
        ("B", "C"): (1, 1),
    }
    assert [(entry.cluster, dict(entry.names)) for entry in disagreements(state)] == [
        (2, {"A": "voids", "B": "empty  SPACE", "C": "empty space"})
    ]


def test_raters_without_a_cluster_in_common(tmp_path: Path) -> None:
    add_name(tmp_path, cluster=0, name="bone", k=3, rater="A")
    add_name(tmp_path, cluster=1, name="bone", k=3, rater="B")
    (row,) = agreements(read_label_state(tmp_path, k=3), sizes=[1, 1, 1])
    assert (row.clusters, row.equal, row.by_patches) == (0, None, None)
