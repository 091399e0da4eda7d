"""Tiny real slides: tiled pyramids written with tifffile, flat images written with Pillow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from histoloom import seeding
from histoloom.config import Config, make_config, read_preset
from histoloom.stages import EventLog, StageContext

GLASS = (243, 243, 245)


def tissue_picture(width: int, height: int, *, seed: int = 0) -> np.ndarray:
    """Glass with a pink, textured block in its middle: uint8 (height, width, 3)."""
    rng = seeding.numpy_generator(seed, "test-picture")
    texture = ndimage.gaussian_filter(rng.normal(size=(height, width)), 1.5)
    texture = texture / np.abs(texture).max()
    picture = np.empty((height, width, 3))
    picture[:] = GLASS
    rows, columns = slice(height // 4, 3 * height // 4), slice(width // 4, 3 * width // 4)
    stained = np.array([190.0, 90.0, 160.0]) + 60 * texture[..., None]
    picture[rows, columns] = stained[rows, columns]
    return picture.clip(0, 255).round().astype(np.uint8)


def write_pyramid(path: Path, picture: np.ndarray, *, mpp: float | None, levels: int = 3) -> Path:
    """A tiled, lossless pyramidal TIFF of 64-px tiles, each level the mean of 2 x 2 pixels of the one above."""
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            options = resolution if level == 0 else {"subfiletype": 1}
            tiff.write(picture, tile=(64, 64), photometric="rgb", compression="zlib", metadata=None, **options)
            picture = np.asarray(Image.fromarray(picture).reduce(2))
    return path


def spoil_tiles(path: Path) -> Path:
    """Overwrite the compressed tiles of level 0 but for the first few: the file opens, and reading it fails."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        spans = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    with path.open("rb+") as file:
        for offset, count in spans[2:]:
            file.seek(offset)
            file.write(b"\xaa" * count)
    return path


@pytest.fixture
def picture() -> Callable[..., np.ndarray]:
    return tissue_picture


@pytest.fixture
def pyramid() -> Callable[..., Path]:
    return write_pyramid


@pytest.fixture
def spoiled() -> Callable[[Path], Path]:
    return spoil_tiles


@pytest.fixture
def slide_folder(tmp_path: Path) -> Path:
    """Three pyramids of 0.5 um/px, of different sizes and pictures."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for seed, (name, side) in enumerate((("a", 256), ("b", 320), ("c", 384))):
        write_pyramid(folder / f"{name}.tif", tissue_picture(side, side - 32, seed=seed), mpp=0.5)
    return folder


@pytest.fixture
def configured() -> Callable[..., Config]:
    """A configuration of 16-px patches at 1 um/px in this process; ``patches`` and ``slides`` replace settings."""

    def make(*paths: Path, patches: dict | None = None, slides: dict | None = None, workers: int = 1) -> Config:
        values = read_preset("cpu")
        values["slides"] = {"paths": [str(path) for path in paths], **(slides or {})}
        values["patches"] = {"size": 16, "mpp": 1.0, "count": 60, "tissue": "all", **(patches or {})}
        values["clusters"]["k"] = [2, 3]
        values["runtime"] = {"workers": workers}
        return make_config(values)

    return make


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., StageContext]:
    """A stage's context that builds in a folder of the given name."""

    def make(config: Config, *, name: str = "out") -> StageContext:
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        return StageContext(tmp_path, config, out, {}, EventLog(out / "log.jsonl"))

    return make
