"""A folder of images of one size, checked, read a few at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from histoloom.errors import UserError

if TYPE_CHECKING:
    from histoloom.evaluation.similarity import Images

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"})
READERS = 4
"""files that are decoded at once"""
LOSSY = frozenset({".jpg", ".jpeg", ".webp"})

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


class ImageFolder:
    """The images below a folder, in the order of their paths: 8-bit RGB, all of one size.

    Raises ``UserError``, which names the first wrong file, for a folder without images and for images that are
    damaged, grey, with alpha, of 16 bits, or of another size.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = _image_paths(folder)
        sizes = [_check_header(path) for path in self.paths]
        self.size = sizes[0]
        """(width, height), px"""
        for path, size in zip(self.paths, sizes, strict=True):
            check_same_size(path, size=size, other=self.paths[0], other_size=self.size)

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def names(self) -> list[str]:
        """The paths below the folder."""
        return [str(path.relative_to(self.folder)) for path in self.paths]

    def key(self, number: int) -> bytes:
        """SHA-256 of the file's content; ``UserError`` where it cannot be read."""
        path = self.paths[number]
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); take it out of the folder") from error

    def read(self, numbers: Sequence[int] | np.ndarray) -> Images:
        """The images of these numbers, uint8 (n, H, W, 3)."""
        with ThreadPoolExecutor(READERS) as pool:
            return np.stack(list(pool.map(read_image, [self.paths[int(number)] for number in numbers])))


def read_image(path: Path) -> Images:
    """An image as uint8 (H, W, 3); ``UserError`` where it is damaged."""
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged ({_one_line(error)}); replace it or take it out of the folder") from error


def check_same_size(path: Path, *, size: tuple[int, int], other: Path, other_size: tuple[int, int]) -> None:
    """``UserError`` where the two images' sizes (width, height) differ."""
    if size != other_size:
        raise UserError(
            f"{path} is {size[0]} x {size[1]} px, but {other} is {other_size[0]} x {other_size[1]} px; "
            "all images must share one size"
        )


def _image_paths(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name a folder of images")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    paths = [path for path in paths if not path.name.startswith(".")]
    if not paths:
        raise UserError(f"{folder} holds no images; known are {', '.join(sorted(SUFFIXES))}")
    return paths


def _check_header(path: Path) -> tuple[int, int]:
    """The image's size (width, height); ``UserError`` where it is not 8-bit RGB."""
    try:
        with Image.open(path) as image:
            mode, size, layout = image.mode, image.size, str(image.tile)
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged ({_one_line(error)}); replace it or take it out of the folder") from error
    # Pillow opens 16-bit RGB as 8-bit and says so only in the layout of the file's pixels.
    if mode.startswith("I") or ";16" in layout:
        raise UserError(f"{path} is a 16-bit image; save it as 8-bit RGB")
    if mode != "RGB":
        raise UserError(f"{path} {_MODES.get(mode, f'is a {mode} image')}; save it as 8-bit RGB")
    return size


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
