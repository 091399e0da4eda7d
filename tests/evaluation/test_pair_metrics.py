"""Every registered metric: known values, order and batch invariance, and a reason where it cannot be had."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from histoloom.evaluation.pair_metrics import (
    PAIR_METRICS,
    PairMetric,
    PairMetricSettings,
    make_metric,
    make_metrics,
    measure,
)

SETTINGS = PairMetricSettings(64, "squeeze", torch.device("cpu"), download=False)
IDENTICAL = {"ssim": 1.0, "ms_ssim": 1.0, "lpips": 0.0}
# Of scikit-image and of torchmetrics in double precision; LPIPS's after its own published values were met.
GOLDEN = {"ssim": 0.15232, "ms_ssim": 0.1032, "lpips": 0.40546}


@pytest.fixture(params=PAIR_METRICS)
def metric(request: pytest.FixtureRequest) -> PairMetric:
    if request.param == "lpips":
        request.getfixturevalue("squeeze_weights")
    return make_metric(request.param, SETTINGS)


def test_identical_images_give_the_known_value(metric: PairMetric, crops) -> None:
    images = crops(3, 64)
    assert metric.values(images, images) == pytest.approx(np.full(3, IDENTICAL[metric.name]), abs=1e-6)


def test_symmetric_and_moves_with_noise(metric: PairMetric, crops) -> None:
    images = crops(2, 64)
    rng = np.random.default_rng(0)
    noisy = [np.clip(images + rng.normal(0, s, images.shape), 0, 255).astype(np.uint8) for s in (5, 20, 60)]
    values = np.stack([metric.values(images, other) for other in noisy])
    steps = np.diff(np.abs(values - IDENTICAL[metric.name]), axis=0)
    assert (steps > 0).all()
    assert metric.values(noisy[1], images) == pytest.approx(values[1], rel=1e-5)


def test_values_do_not_depend_on_chunk_and_order(metric: PairMetric, crops) -> None:
    left, right = crops(7, 64, seed=0), crops(7, 64, seed=1)
    pairs = np.stack([np.arange(7), np.roll(np.arange(7), 2)], axis=1)

    def values(some: np.ndarray, chunk: int | None) -> np.ndarray:
        return measure([metric], left=left.__getitem__, right=right.__getitem__, pairs=some, chunk=chunk)[metric.name]

    whole = values(pairs, 7)
    assert whole.dtype == np.float64
    for chunk in (1, 3, None):
        assert values(pairs, chunk) == pytest.approx(whole, rel=1e-5, abs=1e-7)
    assert values(pairs[::-1], 2) == pytest.approx(whole[::-1], rel=1e-5, abs=1e-7)


def test_no_pairs_no_values(crops) -> None:
    metric = make_metric("ssim", SETTINGS)
    images = crops(1, 64)
    values = measure([metric], left=images.__getitem__, right=images.__getitem__, pairs=np.empty((0, 2), np.int64))
    assert values["ssim"].shape == (0,)


def test_golden_mean_over_real_tissue(metric: PairMetric, crops) -> None:
    left, right = crops(8, 64, seed=10), crops(8, 64, seed=11)
    pairs = np.stack([np.arange(8), np.arange(8)], axis=1)
    values = measure([metric], left=left.__getitem__, right=right.__getitem__, pairs=pairs)
    assert values[metric.name].mean() == pytest.approx(GOLDEN[metric.name], abs=1e-4)


@pytest.mark.usefixtures("no_weights")
def test_missing_weights_are_a_reason_and_no_value() -> None:
    metrics, missing = make_metrics(SETTINGS)
    assert [metric.name for metric in metrics] == ["ssim", "ms_ssim"]
    assert list(missing) == ["lpips"]
    assert "HISTOLOOM_WEIGHTS" in missing["lpips"]


def test_too_small_images_are_a_reason() -> None:
    metrics, missing = make_metrics(PairMetricSettings(8, "squeeze", torch.device("cpu"), download=False))
    assert metrics == []
    assert set(missing) == set(PAIR_METRICS)
    assert all("too small" in reason for reason in missing.values())


def test_extractor_says_how_many_scales() -> None:
    assert make_metric("ms_ssim", SETTINGS).extractor == "RGB pixels, 3 of 5 scales"
