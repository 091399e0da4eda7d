"""Tiny real slides: tiled pyramids written with tifffile, flat images written with Pillow."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from histoloom import seeding
from histoloom.config import Config, make_config, read_preset
from histoloom.run.stage import EventLog, StageContext

GLASS = (243, 243, 245)


def tissue_picture(width: int, height: int, *, seed: int = 0) -> np.ndarray:
    """Glass with a pink, textured block in its middle: uint8 (height, width, 3), which the caller may change."""
    return _tissue_picture(width, height, seed).copy()


@lru_cache(maxsize=16)
def _tissue_picture(width: int, height: int, seed: int) -> np.ndarray:
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


@pytest.fixture(scope="session")
def picture() -> Callable[..., np.ndarray]:
    return tissue_picture


@pytest.fixture(scope="session")
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
    """A configuration of 16-px patches at 1 um/px in this process, without their surroundings; ``patches`` and
    ``slides`` replace settings.
    """

    def make(*paths: Path, patches: dict | None = None, slides: dict | None = None, workers: int = 1) -> Config:
        values = read_preset("cpu")
        values["slides"] = {"paths": [str(path) for path in paths], **(slides or {})}
        values["patches"] = {"size": 16, "mpp": 1.0, "count": 60, "tissue": "all", **(patches or {})}
        values["clusters"] |= {"k": [2, 3], "surroundings": 0}
        values["diffusion"] |= {
            "channels": [16, 16],
            "attention": [False, False],
        }  # fewer levels, as the patches are small
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


def _element(group: int, number: int, kind: str, value: bytes | int) -> bytes:
    """A DICOM data element, explicit little endian (PS3.5 7.1.2)."""
    data = value if isinstance(value, bytes) else value.to_bytes({"US": 2, "UL": 4}[kind], "little")
    data += (b"\0" if kind in ("UI", "OB", "OW") else b" ") * (len(data) % 2)
    tag = group.to_bytes(2, "little") + number.to_bytes(2, "little") + kind.encode()
    if kind in ("SQ", "OB", "OW"):
        return tag + b"\0\0" + len(data).to_bytes(4, "little") + data
    return tag + len(data).to_bytes(2, "little") + data


def _item(content: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + len(content).to_bytes(4, "little") + content


def write_dicom(path: Path, image: np.ndarray, *, series: str, instance: str, mpp: float, tile: int = 64) -> Path:
    """One level of a whole-slide image (PS3.3 A.32.8), uncompressed, tiled in full, with a patient's name in it."""
    (high, wide), kind = image.shape[:2], b"1.2.840.10008.5.1.4.1.1.77.1.6"
    rows, columns = -(-high // tile), -(-wide // tile)
    padded = np.full((rows * tile, columns * tile, 3), 255, np.uint8)
    padded[:high, :wide] = image
    frames = padded.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2).tobytes()
    meta = _element(2, 2, "UI", kind) + _element(2, 3, "UI", instance.encode())
    meta = _element(2, 1, "OB", b"\0\1") + meta + _element(2, 0x10, "UI", b"1.2.840.10008.1.2.1")
    spacing = _element(0x28, 0x30, "DS", f"{mpp / 1000:.6f}\\{mpp / 1000:.6f}".encode())
    measures = _element(0x28, 0x9110, "SQ", _item(_element(0x18, 0x50, "DS", b"0.001") + spacing))
    elements = (
        (8, 8, "CS", b"ORIGINAL\\PRIMARY\\VOLUME\\NONE"), (8, 0x16, "UI", kind), (8, 0x18, "UI", instance.encode()),
        (8, 0x20, "DA", b"19991231"), (8, 0x60, "CS", b"SM"), (0x10, 0x10, "PN", b"Mustermann^Max"),
        (0x20, 0xD, "UI", b"1.2.9"), (0x20, 0xE, "UI", series.encode()), (0x20, 0x52, "UI", b"1.2.10"),
        (0x20, 0x9311, "CS", b"TILED_FULL"), (0x28, 2, "US", 3), (0x28, 4, "CS", b"RGB"), (0x28, 6, "US", 0),
        (0x28, 8, "IS", str(rows * columns).encode()), (0x28, 0x10, "US", tile), (0x28, 0x11, "US", tile),
        (0x28, 0x100, "US", 8), (0x28, 0x101, "US", 8), (0x28, 0x102, "US", 7), (0x28, 0x103, "US", 0),
        (0x48, 6, "UL", wide), (0x48, 7, "UL", high), (0x48, 0x303, "UL", 1), (0x5200, 0x9229, "SQ", _item(measures)),
        (0x7FE0, 0x10, "OW", frames),
    )  # fmt: skip
    body = b"".join(_element(*element) for element in elements)
    path.write_bytes(bytes(128) + b"DICM" + _element(2, 0, "UL", len(meta)) + meta + body)
    return path


@pytest.fixture
def dicom_level() -> Callable[..., Path]:
    return write_dicom
