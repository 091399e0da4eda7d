"""What every metric of two sets promises. A new one is tested here by being registered; its golden number is due."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from histoloom.evaluation import set_metrics
from histoloom.evaluation.set_metrics import (
    SET_METRICS,
    SetMetric,
    distance_blocks,
    frechet_distance,
    kernel_distance,
    squared_radii,
)

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "set_metrics.json").read_text(encoding="utf-8"))
SETS = {"many": (300, 260, 24), "few": (40, 30, 64)}
NAMES = [name for metric in SET_METRICS for name in metric.values]
EQUAL_NUMBERS = {"kid", "mmd"}


def features(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Those of tests/golden/make_set_metrics.py."""
    n, m, dimension = SETS[name]
    rng = np.random.default_rng(7)
    real_ND = np.abs(rng.standard_normal((n, dimension)))
    return real_ND, 0.3 + np.abs(rng.standard_normal((m, dimension))) * np.linspace(0.6, 1.2, dimension)


def values(real_ND: np.ndarray, synthetic_MD: np.ndarray) -> dict[str, float]:
    return {
        name: estimate.value
        for metric in SET_METRICS
        for name, estimate in metric.estimate(real_ND, synthetic_MD, rng=np.random.default_rng(0)).items()
    }


def same_kid(x_ND: np.ndarray) -> float:
    """Of a set and itself the unbiased estimate is below 0 by what the equal pairs give."""
    kernel = (x_ND @ x_ND.T / x_ND.shape[1] + 1) ** 3
    n = len(x_ND)
    return 2 * (kernel.sum() - np.trace(kernel)) / (n * (n - 1)) - 2 * kernel.mean()


@pytest.mark.parametrize("sets", SETS)
def test_equal_sets_have_the_known_value(sets: str) -> None:
    real, _ = features(sets)
    known = dict.fromkeys(("precision", "recall", "density", "coverage"), 1.0) | {"frechet": 0.0, "mmd": 0.0}
    known["kid"] = same_kid(real)
    assert values(real, real[::-1]) == pytest.approx(known, abs=1e-9)


@pytest.mark.parametrize("sets", SETS)
def test_agrees_with_other_peoples_code(sets: str) -> None:
    real, synthetic = features(sets)
    same = min(len(real), len(synthetic))
    measured, equal = values(real, synthetic), values(real[:same], synthetic[:same])
    names = {golden.split()[0] for golden in GOLDEN[sets]}
    assert names == set(NAMES)
    for golden, value in GOLDEN[sets].items():
        name = golden.split()[0]
        assert (equal if name in EQUAL_NUMBERS else measured)[name] == pytest.approx(value, rel=1e-6), golden


def test_order_changes_nothing() -> None:
    real, synthetic = features("many")
    rng = np.random.default_rng(1)
    assert values(rng.permutation(real), rng.permutation(synthetic)) == pytest.approx(values(real, synthetic), rel=1e-9)


def test_the_size_of_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real, synthetic = features("many")
    whole = values(real, synthetic)
    monkeypatch.setattr(set_metrics, "BLOCK", 37)
    assert values(real, synthetic) == pytest.approx(whole, rel=1e-9)


def test_single_precision_is_enough() -> None:
    real, synthetic = features("many")
    rounded = values(real.astype(np.float32), synthetic.astype(np.float32))
    assert rounded == pytest.approx(values(real, synthetic), rel=1e-4)


@pytest.mark.parametrize("metric", SET_METRICS, ids=lambda metric: "+".join(metric.values))
def test_a_shift_is_seen_and_intervals_hold_the_value(metric: SetMetric) -> None:
    real, _ = features("many")
    near, far = real[150:], real[150:] + 1.5
    rng = np.random.default_rng
    close, away = (metric.estimate(real[:150], other, rng=rng(0)) for other in (near, far))
    for name, better in metric.values.items():
        low, high = close[name].interval
        assert low <= close[name].value <= high
        assert (close[name].value < away[name].value) == (better == "smaller")
    assert close == metric.estimate(real[:150], near, rng=rng(0))


def test_frechet_agrees_with_the_square_root_of_matrices() -> None:
    real, synthetic = features("many")
    a, b = (np.cov(x, rowvar=False) for x in (real, synthetic))
    root = sqrtm(a @ b).real
    gap = real.mean(axis=0) - synthetic.mean(axis=0)
    assert frechet_distance(real, synthetic) == pytest.approx(gap @ gap + np.trace(a + b - 2 * root), rel=1e-9)


def test_frechet_of_fewer_images_than_features_agrees_with_eigenvalues() -> None:
    real, synthetic = features("few")
    a, b = (np.cov(x, rowvar=False) for x in (real, synthetic))
    root = np.sqrt(np.linalg.eigvals(a @ b).astype(complex)).real.sum()
    gap = real.mean(axis=0) - synthetic.mean(axis=0)
    assert frechet_distance(real, synthetic) == pytest.approx(gap @ gap + np.trace(a + b) - 2 * root, rel=1e-6)


def test_frechet_of_gaussians_of_one_shape_is_the_gap_of_their_means() -> None:
    real, _ = features("many")
    assert frechet_distance(real, real + 2) == pytest.approx(4 * real.shape[1], rel=1e-9)


def test_kid_is_around_zero_for_one_distribution_whatever_the_number() -> None:
    rng = np.random.default_rng(3)
    for n in (20, 100):
        distances = [kernel_distance(rng.standard_normal((n, 8)), rng.standard_normal((n, 8))) for _ in range(60)]
        assert abs(np.mean(distances)) < 3 * np.std(distances) / np.sqrt(60)


def test_intervals_cover_what_they_say() -> None:
    """The 95 % interval of KID holds what very many images give, of about 57 in 60 pairs of small sets."""
    true = _true_kid()
    metric = next(metric for metric in SET_METRICS if "kid" in metric.values)
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(60):
        real, other = rng.standard_normal((60, 4)), rng.standard_normal((80, 4)) + 0.5
        low, high = metric.estimate(real, other, rng=rng)["kid"].interval
        held += low <= true <= high
    assert held >= 51


def test_no_image_of_few_is_not_certainly_none_of_all() -> None:
    real, _ = features("few")
    metric = next(metric for metric in SET_METRICS if "precision" in metric.values)
    estimate = metric.estimate(real, real[:30] + 100, rng=np.random.default_rng(0))["precision"]
    assert (estimate.value, estimate.interval[0]) == (0.0, 0.0)
    assert estimate.interval[1] == pytest.approx(0.1135, abs=1e-4)  # Wilson: z^2 / (n + z^2)


def test_distances_and_radii_agree_with_scipy() -> None:
    real, synthetic = features("many")
    squares_BM = np.concatenate([distances for _, distances in distance_blocks(synthetic, real)])
    assert np.allclose(squares_BM, cdist(synthetic, real, "sqeuclidean"))
    assert np.allclose(squared_radii(real, neighbours=4), np.sort(cdist(real, real, "sqeuclidean"), axis=1)[:, 4])


def test_too_few_images_are_an_error() -> None:
    real, synthetic = features("few")
    for function in (frechet_distance, kernel_distance):
        with pytest.raises(ValueError, match="at least two images, got 40 and 1"):
            function(real, synthetic[:1])
    with pytest.raises(ValueError, match="5 neighbours need more than 5 images, got 5"):
        squared_radii(real[:5], neighbours=5)


def _true_kid(draws: int = 4_000) -> float:
    """Of standard Gaussians in four dimensions, one moved by 0.5 in each, by many independent pairs of points."""
    rng = np.random.default_rng(11)
    x, y = rng.standard_normal((2, draws, 4)), rng.standard_normal((2, draws, 4)) + 0.5
    return float(kernel_distance(x.reshape(-1, 4), y.reshape(-1, 4)))
