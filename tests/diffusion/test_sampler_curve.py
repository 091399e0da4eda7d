from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sampler_curve import attainable, features_of, measure, parsed

from histoloom.evaluation.set_metrics import frechet_distance


def test_frechet_of_gaussians_that_are_known() -> None:
    x = np.random.default_rng(0).standard_normal((500, 3)) @ np.diag([1.0, 2.0, 0.5])
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + np.array([3.0, 0.0, 4.0])) == pytest.approx(25)
    centred = x - x.mean(axis=0)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * np.trace(np.cov(centred, rowvar=False)))
    y = np.random.default_rng(1).standard_normal((400, 3))
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x))


def test_features_tell_layouts_apart() -> None:
    noise = torch.randn(200, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1) * 3
    a, b = features_of(noise), features_of(smooth)
    assert a["pooled"].shape == (200, 4)
    assert a["layout"].shape == (200, 12)
    assert abs(a["layout"][:, 0].mean()) < 0.05 < 0.3 < b["layout"][:, 0].mean()


def test_the_curve_of_a_tiny_run(tiny_run: Path, tmp_path: Path) -> None:
    assert attainable("heun", 10) == 9
    words = [str(tiny_run), "-n", "12", "--reference", "6", "--evaluations", "4", "--device", "cpu", "--threads", "1"]
    words += ["--methods", "heun", "unipc", "--batch", "5", "--pictures", "pixels", "--out", str(tmp_path), "--json"]
    result = measure(parsed(words))
    points = json.loads(json.dumps(result))["points"]
    assert [(point["method"], point["evaluations"]) for point in points] == [("ddpm", 6), ("heun", 3), ("unipc", 4)]
    assert points[0]["pooled_ratio"] == 1
    assert points[2]["less_work"] == 1.5
    assert all(np.isfinite(point[kind]) for point in points for kind in ("pooled", "layout", "pixels"))
    assert len(list(tmp_path.glob("*.npz"))) == 3
    assert measure(parsed(words)) == result
