"""Images that are read a few at a time: a folder of images, the samples of a run, rows of a patch set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from histoloom.errors import UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"})
LOSSY = frozenset({".jpg", ".jpeg", ".webp"})
READERS = 4
"""files that are decoded at once"""

NO_TISSUE = -1
"""In place of the cluster of a real patch that is left out, because its cluster is flagged as artefact."""

_MODES = {
    "L": "is a grey image",
    "LA": "is a grey image with transparency",
    "RGBA": "has an alpha channel",
    "1": "is a black-and-white image",
    "P": "has a colour palette",
    "CMYK": "is a CMYK image",
    "F": "has float pixels",
}
_DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

Images = NDArray[np.uint8]
"""RGB, 0..255, (n, H, W, 3)."""
Reader = Callable[[np.ndarray], Images]
"""Reads the images of an int array of indices, in its order."""


class ImageSource(Protocol):
    """Images by index."""

    def __len__(self) -> int: ...

    def key(self, index: int, /) -> bytes:
        """SHA-256 of the image's content."""

    def read(self, indices: np.ndarray, /) -> Images:
        """The images of these indices, uint8 (n, H, W, 3)."""


@dataclass(frozen=True)
class ImageRows:
    """Some rows of a reader (a patch set, a folder of samples) as an ``ImageSource``."""

    reader: Reader
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> bytes:
        """SHA-256 of the image's shape and pixels."""
        image = self.reader(self.rows[index : index + 1])[0]
        return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()

    def read(self, indices: np.ndarray) -> Images:
        """See ``ImageSource``."""
        return self.reader(self.rows[indices])


@dataclass(frozen=True)
class ChosenImages:
    """Some images of a source, in this order, as an ``ImageSource``."""

    source: ImageSource
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> bytes:
        """See ``ImageSource``."""
        return self.source.key(int(self.rows[index]))

    def read(self, indices: np.ndarray) -> Images:
        """See ``ImageSource``."""
        return self.source.read(self.rows[indices])


class SampleFolder:
    """The samples of a run: ``table`` is its metadata.csv, a row an image; images are read on demand.

    ``left_out``: clusters by k, flagged as artefact, whose samples ``rows`` does not give.
    """

    def __init__(self, folder: Path, *, left_out: Mapping[int, Sequence[int]] | None = None) -> None:
        self.folder = folder
        self.left_out = left_out or {}
        self.table = pd.read_csv(folder / "metadata.csv")

    def __len__(self) -> int:
        return len(self.table)

    @property
    def ks(self) -> list[int]:
        """Every k that has samples, rising."""
        return sorted(int(k) for k in self.table["k"].unique())

    def rows(self, k: int) -> dict[int, np.ndarray]:
        """The rows of each cluster of ``k`` that has samples, but for those left out."""
        clusters = self.table["cluster"].to_numpy()
        is_k = (self.table["k"] == k).to_numpy() & ~np.isin(clusters, self.left_out.get(k, ()))
        return {int(c): np.flatnonzero(is_k & (clusters == c)) for c in np.unique(clusters[is_k])}

    def images(self, rows: np.ndarray) -> Images:
        """The images of these rows, in their order: uint8 (n, H, W, 3); ``UserError`` where one is damaged."""
        names = self.table["file_name"].to_numpy()[rows]
        return np.stack([read_image(self.folder / str(name)) for name in names])


class ImageFolder:
    """The images below a folder, in the order of their paths: 8-bit RGB, all of one ``size`` (width, height), px.

    Raises ``UserError``, which names the first wrong file, for a folder without images and for images that are
    damaged, grey, with alpha, of 16 bits, or of another size.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; name a folder of images")
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        self.folder = folder
        self.paths = [path for path in files if not path.name.startswith(".")]
        if not self.paths:
            raise UserError(f"{folder} holds no images; known are {', '.join(sorted(SUFFIXES))}")
        sizes = [_check_header(path) for path in self.paths]
        self.size = sizes[0]
        for path, size in zip(self.paths, sizes, strict=True):
            _check_same_size(path, size=size, other=self.paths[0], other_size=self.size)

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def names(self) -> list[str]:
        """The paths below the folder."""
        return [str(path.relative_to(self.folder)) for path in self.paths]

    def require_size_of(self, other: ImageFolder) -> None:
        """``UserError`` where the images of the two folders differ in size."""
        _check_same_size(self.paths[0], size=self.size, other=other.paths[0], other_size=other.size)

    def key(self, index: int) -> bytes:
        """SHA-256 of the file's content; ``UserError`` where it cannot be read."""
        path = self.paths[index]
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); take it out of the folder") from error

    def read(self, indices: Sequence[int] | np.ndarray) -> Images:
        """See ``ImageSource``."""
        with ThreadPoolExecutor(READERS) as pool:
            return np.stack(list(pool.map(read_image, [self.paths[int(index)] for index in indices])))


def require_apart(*folders: Path, advice: str) -> None:
    """Raise ``UserError`` where two folders are one, or one holds another: its images would count in both."""
    for one, other in combinations([folder.resolve() for folder in folders], 2):
        if one == other or one in other.parents or other in one.parents:
            raise UserError(f"{one} and {other} are or hold the same images; {advice}")


def read_image(path: Path) -> Images:
    """An image as uint8 (H, W, 3); ``UserError`` where it is damaged."""
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except _DAMAGED as error:
        raise _damaged(path, error) from error


def _check_header(path: Path) -> tuple[int, int]:
    """The image's size (width, height); ``UserError`` where it is not 8-bit RGB."""
    try:
        with Image.open(path) as image:
            mode, size, layout = image.mode, image.size, str(image.tile)
    except _DAMAGED as error:
        raise _damaged(path, error) from error
    # Pillow opens 16-bit RGB as 8-bit and says so only in the layout of the file's pixels.
    if mode.startswith("I") or ";16" in layout:
        raise UserError(f"{path} is a 16-bit image; save it as 8-bit RGB")
    if mode != "RGB":
        raise UserError(f"{path} {_MODES.get(mode, f'is a {mode} image')}; save it as 8-bit RGB")
    return size


def _check_same_size(path: Path, *, size: tuple[int, int], other: Path, other_size: tuple[int, int]) -> None:
    if size != other_size:
        raise UserError(
            f"{path} is {size[0]} x {size[1]} px, but {other} is {other_size[0]} x {other_size[1]} px; "
            "all images must share one size"
        )


def _damaged(path: Path, error: BaseException) -> UserError:
    reason = " ".join(str(error).split())  # on one line
    return UserError(f"{path} is damaged ({reason}); replace it or take it out of the folder")
