"""Small real pictures: crops of the tissue image that scikit-image ships."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from skimage.data import immunohistochemistry

from histoloom.autoencoder.lpips import FILES

Crops = Callable[..., np.ndarray]


@pytest.fixture(scope="session")
def crops() -> Crops:
    """``crops(n, size, seed)``: crops of real tissue, uint8 (n, size, size, 3)."""
    tissue = immunohistochemistry()

    def draw(n: int, size: int, seed: int = 0) -> np.ndarray:
        corners = np.random.default_rng(seed).integers(0, 512 - size + 1, size=(n, 2))
        return np.stack([tissue[y : y + size, x : x + size] for y, x in corners])

    return draw


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LPIPS's weights are nowhere, and cannot be downloaded."""
    monkeypatch.delenv("HISTOLOOM_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no-torch-home"))
    monkeypatch.setattr("histoloom.autoencoder.lpips._ADDRESS", (tmp_path / "no-network").as_uri())


@pytest.fixture
def squeeze_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """LPIPS's SqueezeNet weights are available."""
    data = os.environ.get("HISTOLOOM_TEST_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")
    folder = Path(os.environ.get("HISTOLOOM_WEIGHTS", Path(data).resolve() / "weights"))
    if not (folder / FILES["squeeze"].npz).is_file():
        pytest.skip(f"no weights: set HISTOLOOM_WEIGHTS to a folder with {FILES['squeeze'].npz} (looked in {folder})")
    monkeypatch.setenv("HISTOLOOM_WEIGHTS", str(folder))
