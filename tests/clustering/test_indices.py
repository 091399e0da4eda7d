"""The five indices against their definitions evaluated over all pairs at once, by hand, and by scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.metrics import calinski_harabasz_score
from torch import Tensor

from histoloom.clustering.validity import pair_distances
from histoloom.clustering.validity.indices import INDICES, LARGER_IS_BETTER, validity_indices
from histoloom.clustering.validity.pair_distances import Prefix
from histoloom.errors import UserError
from histoloom.seeding import numpy_generator, torch_generator

Case = tuple[np.ndarray, np.ndarray]


def direct(x_ND: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """docs/explanation/design.md, section 4, word for word, with all pairs in memory."""
    x_ND = x_ND.astype(np.float64)
    n, values = len(x_ND), np.unique(labels_N)
    means = {value: x_ND[labels_N == value].mean(0) for value in values}
    wgss = sum(((x_ND[labels_N == value] - means[value]) ** 2).sum() for value in values)
    bgss = sum((labels_N == value).sum() * ((means[value] - x_ND.mean(0)) ** 2).sum() for value in values)
    distances = pdist(x_ND)
    first, second = np.triu_indices(n, 1)
    same = labels_N[first] == labels_N[second]
    within, between, ordered = distances[same], distances[~same], np.sort(distances)
    smallest, largest = math.fsum(ordered[: len(within)]), math.fsum(ordered[-len(within) :])
    return {
        "calinski_harabasz": (bgss / (len(values) - 1)) / (wgss / (n - len(values))),
        "c_index": (math.fsum(within) - smallest) / (largest - smallest),
        "dunn": between.min() / within.max(),
        "hartigan": math.log(bgss / wgss),
        "mcclain_rao": (math.fsum(within) / len(within)) / (math.fsum(between) / len(between)),
    }


def blobs(n: int, *, k: int, d: int, spread: float = 1.0, seed: int = 0) -> Case:
    rng = numpy_generator(seed, "blobs")
    labels_N = np.r_[np.arange(k), rng.integers(0, k, n - k)]
    return 3 * spread * rng.standard_normal((k, d))[labels_N] + rng.standard_normal((n, d)), labels_N


def mixture() -> Case:
    return blobs(2000, k=14, d=64, spread=0.2)


def far_from_origin() -> Case:
    x_ND, labels_N = blobs(2000, k=6, d=8)
    return x_ND + 1e5, labels_N


def tight_and_far_apart() -> Case:
    return blobs(2000, k=5, d=16, spread=1e5)


def tied_distances() -> Case:
    rng = numpy_generator(0, "grid")
    return rng.integers(0, 4, (2000, 2)).astype(float), rng.integers(0, 7, 2000)


def uneven_with_singletons() -> Case:
    x_ND, _ = blobs(2000, k=3, d=3)
    return x_ND, np.r_[np.full(1900, 5), np.arange(10, 60), np.full(50, -3)]


def nearly_all_singletons() -> Case:
    x_ND, _ = blobs(2000, k=3, d=3)
    return x_ND, np.r_[0, 0, np.arange(1, 1999)]


CASES = (mixture, far_from_origin, tight_and_far_apart, tied_distances, uneven_with_singletons, nearly_all_singletons)


def measured(x_ND: np.ndarray | Tensor, labels_N: np.ndarray, *, block: int = 1024) -> dict[str, float]:
    result = validity_indices(torch.as_tensor(x_ND), torch.as_tensor(labels_N), block=block)
    return {index: getattr(result, index) for index in INDICES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@pytest.mark.parametrize(("block", "kept"), [(300, 16_000_000), (1024, 16_000_000), (512, 1000)])
def test_agrees_with_all_pairs_at_once(
    case: Callable[[], Case], block: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the bracket holds more than is kept, so that passes narrow it."""
    monkeypatch.setattr(pair_distances, "_KEPT", kept)
    x_ND, labels_N = case()
    assert measured(x_ND, labels_N, block=block) == pytest.approx(direct(x_ND, labels_N), rel=1e-9, abs=1e-15)


def test_by_hand() -> None:
    """0, 1, 3, 4 on a line: distances 1, 1, 2, 3, 3, 4; the mean is 2."""
    x_ND = torch.tensor([[0.0], [1.0], [3.0], [4.0]])
    good = measured(x_ND, np.array([0, 0, 1, 1]))
    assert good == pytest.approx(
        {"calinski_harabasz": 18, "c_index": 0, "dunn": 2, "hartigan": math.log(9), "mcclain_rao": 1 / 3}, abs=1e-14
    )
    bad = measured(x_ND, np.array([0, 1, 0, 1]))
    assert bad == pytest.approx(
        {"calinski_harabasz": 2 / 9, "c_index": 0.8, "dunn": 1 / 3, "hartigan": -math.log(9), "mcclain_rao": 1.5}
    )
    for index, larger in LARGER_IS_BETTER.items():
        assert (good[index] > bad[index]) == larger


def test_calinski_harabasz_of_scikit_learn() -> None:
    x_ND, labels_N = mixture()
    assert measured(x_ND, labels_N)["calinski_harabasz"] == pytest.approx(
        calinski_harabasz_score(x_ND, labels_N), rel=1e-11
    )


def test_hartigan_and_calinski_harabasz_belong_together() -> None:
    """As in the paper's tables: CH = exp(Hartigan) (n - k) / (k - 1)."""
    x_ND, labels_N = blobs(500, k=7, d=3)
    values = measured(x_ND, labels_N)
    assert values["calinski_harabasz"] == pytest.approx(math.exp(values["hartigan"]) * (500 - 7) / 6)


def test_order_place_size_turn_and_names_do_not_matter() -> None:
    x_ND, labels_N = blobs(400, k=5, d=4)
    expected = measured(x_ND, labels_N)
    turn_DD = np.linalg.qr(numpy_generator(0, "turn").standard_normal((4, 4)))[0]
    order_N = numpy_generator(0, "order").permutation(400)
    for other in (
        measured(x_ND[order_N], labels_N[order_N]),
        measured(x_ND + 7, labels_N),
        measured(1e-3 * x_ND, labels_N),
        measured(x_ND @ turn_DD, labels_N),
        measured(x_ND, 100 - 3 * labels_N),
    ):
        assert other == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int16])
def test_computes_in_double_precision_whatever_comes_in(dtype: torch.dtype) -> None:
    x_ND, labels_N = blobs(300, k=4, d=5)
    given_ND = torch.from_numpy(20 * x_ND).to(dtype)
    assert measured(given_ND, labels_N) == pytest.approx(direct(given_ND.double().numpy(), labels_N), rel=1e-9)


def test_reports_sizes_and_leaves_its_input_alone() -> None:
    x_ND, labels_N = torch.tensor([[0.0], [5.0], [1.0], [9.0]]), torch.tensor([8, 2, 8, 2])
    before_ND = x_ND.clone()
    result = validity_indices(x_ND, labels_N)
    assert (result.n, result.k, result.sizes) == (4, 2, (2, 2))
    assert torch.equal(x_ND, before_ND)
    assert result == validity_indices(x_ND, labels_N)


def test_a_duplicate_in_another_cluster_makes_dunn_exactly_zero() -> None:
    x_ND, labels_N = blobs(500, k=4, d=32)
    x_ND[labels_N.argmax()] = x_ND[labels_N.argmin()]
    assert measured(x_ND, labels_N)["dunn"] == 0


@pytest.mark.parametrize("bracket", [(0.4, 0.6), (0.0, 0.01), (0.9, 0.95), (0.0, 1.0)])
@pytest.mark.parametrize("rank", [1, 2500, 4999, 5000])
@pytest.mark.parametrize("kept", [0, 500, 16_000_000])
def test_a_wrong_bracket_costs_passes_but_not_exactness(
    bracket: tuple[float, float], rank: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_distances, "_KEPT", kept)
    values = torch.rand(5000, generator=torch_generator(0, "values"), dtype=torch.float64)
    values[1000:2000] = values[0]
    prefix = Prefix(rank, bracket=bracket, limits=(0.0, 1.0))
    for _ in range(12):
        for part in values.chunk(7):
            prefix.add(part)
        prefix.end_pass()
        if prefix.result is not None:
            break
    assert prefix.result == pytest.approx(math.fsum(values.sort().values[:rank].tolist()), rel=1e-13)


@pytest.mark.parametrize(
    ("x_ND", "labels", "message"),
    [
        ([[0.0], [math.nan], [1.0]], [0, 0, 1], "1 of 3 points hold NaN or infinite"),
        ([[0.0], [math.inf], [1.0]], [0, 0, 1], "1 of 3 points hold NaN or infinite"),
        ([[0.0], [1.0], [2.0]], [4, 4, 4], "same label"),
        ([[0.0], [1.0], [2.0]], [0, 1, 2], "its own cluster"),
        ([[0.0], [1.0], [2.0]], [0, 1], "3 points and 2 labels"),
        ([[0.0], [1.0], [2.0]], [0.0, 0.5, 1.0], "whole numbers"),
        ([[0.1], [0.1], [0.7], [0.7]], [0, 0, 1, 1], "identical"),
        ([[0.0], [2.0], [1.0], [1.0]], [0, 0, 1, 1], "coincide"),
        ([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]], [0, 0, 1], "all distances between points are equal"),
        ([0.0, 1.0, 2.0], [0, 0, 1], "must be a table"),
    ],
)
def test_undefined_indices_are_refused(x_ND: list[object], labels: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validity_indices(torch.tensor(x_ND), torch.tensor(labels))


def test_agrees_with_permetrics() -> None:
    """permetrics 2.1.0: its Calinski-Harabasz, log SS ratio (our Hartigan) and, unmodified, Dunn index of these points.

    What it calls Hartigan's is another index, and its modified Dunn index measures from cluster centres.
    """
    i = np.arange(60)
    x_ND = np.stack(
        [np.sin(1.7 * i) + 3 * (i % 3 == 0), np.cos(2.3 * i) + 3 * (i % 3 == 1), np.sin(0.9 * i * i)], axis=1
    )
    result = measured(x_ND, i % 3)
    assert result["calinski_harabasz"] == pytest.approx(73.80930846903087, rel=1e-12)
    assert result["hartigan"] == pytest.approx(0.9515807673946521, rel=1e-12)
    assert result["dunn"] == pytest.approx(0.365870125189077, rel=1e-12)
